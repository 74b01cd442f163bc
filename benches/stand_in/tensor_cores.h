// Matrix products of a warp: mma, wmma, ldmatrix, stmatrix.
#pragma once
#include "decode.h"

// Fragments of mma.sync, by PTX's own layouts.
static Fn mma_sync(const vector<string> &p, vector<Op> o, const string &text) {
    string shape = p[3];
    int K = atoi(shape.c_str() + shape.find('k') + 1);
    if (shape.rfind("m16n8k", 0) != 0) die("mma: " + text);
    string td = p[p.size() - 4], ta = p[p.size() - 3], tb = p[p.size() - 2], tc = p[p.size() - 1];
    if (ta != tb || td != tc || (td != "f32" && td != "f16")) die("mma: " + text);
    vector<Op> D = o[0].v, A = o[1].v, B = o[2].v, C = o[3].v;
    bool tf = ta == "tf32";
    bool half = ta == "f16";
    if (!tf && !half && ta != "bf16") die("mma: " + text);
    bool d16 = td == "f16";
    return [=](Warp &w, u32 m) {
        if (m != ~0u) fault("mma with lanes missing");
        static thread_local float a[16][32], b[32][8], c[16][8];
        for (size_t r = 0; r < A.size(); r++) {
            u32 x[32];
            rd(w, A[r], x);
            for (int l = 0; l < 32; l++) {
                int g = l >> 2, t = l & 3;
                if (tf) a[g + (r & 1 ? 8 : 0)][t + (r & 2 ? 4 : 0)] = std::bit_cast<float>(x[l] & ~0x1fffu);
                else
                    for (int i = 0; i < 2; i++) {
                        u16 h = x[l] >> (16 * i);
                        a[g + (r & 1 ? 8 : 0)][t * 2 + i + (r & 2 ? 8 : 0)] = half ? h2f(h) : bf2f(h);
                    }
            }
        }
        for (size_t r = 0; r < B.size(); r++) {
            u32 x[32];
            rd(w, B[r], x);
            for (int l = 0; l < 32; l++) {
                int g = l >> 2, t = l & 3;
                if (tf) b[t + 4 * r][g] = std::bit_cast<float>(x[l] & ~0x1fffu);
                else
                    for (int i = 0; i < 2; i++) {
                        u16 h = x[l] >> (16 * i);
                        b[t * 2 + i + 8 * r][g] = half ? h2f(h) : bf2f(h);
                    }
            }
        }
        for (size_t r = 0; r < C.size(); r++) {
            u32 x[32];
            rd(w, C[r], x);
            for (int l = 0; l < 32; l++) {
                int g = l >> 2, t = l & 3;
                if (d16)
                    for (int i = 0; i < 2; i++) c[g + 8 * r][t * 2 + i] = h2f(x[l] >> (16 * i));
                else c[g + (r & 2 ? 8 : 0)][t * 2 + (r & 1)] = std::bit_cast<float>(x[l]);
            }
        }
        for (int i = 0; i < 16; i++)
            for (int kk = 0; kk < K; kk++)
                for (int j = 0; j < 8; j++) c[i][j] += a[i][kk] * b[kk][j];
        for (size_t r = 0; r < D.size(); r++) {
            u32 x[32];
            for (int l = 0; l < 32; l++) {
                int g = l >> 2, t = l & 3;
                if (d16) x[l] = f2h(c[g + 8 * r][t * 2]) | (u32)f2h(c[g + 8 * r][t * 2 + 1]) << 16;
                else x[l] = std::bit_cast<u32>(c[g + (r & 2 ? 8 : 0)][t * 2 + (r & 1)]);
            }
            wr(w, D[r], x, m);
        }
    };
}

// wmma fragments: their layout is the hardware's own; here element e of the fragment in row-major
// order lies in lane e / per, place e % per. a and b are held twice by the hardware for some
// types, which nobody may look at.
static void wmma_dims(const string &shape, int &M, int &N, int &K) {
    sscanf(shape.c_str(), "m%dn%dk%d", &M, &N, &K);
}
// Place of (row, col) of a fragment: lane and position; two neighbours in a row share a register.
struct Place {
    int lane, reg, half;
};
static Place place(int r, int c, int rows, int cols, int per) {
    int e = r * cols + c;
    int each = rows * cols / 32; // of a lane
    return {e / each, (e % each) / per, (e % each) % per};
}
static Fn wmma_load(const vector<string> &p, vector<Op> o, const string &text) {
    string which = p[2], layout, shape, t = p.back();
    Space sp = Decoder::space_in(p);
    for (auto &x : p) {
        if (x == "row" || x == "col") layout = x;
        if (x[0] == 'm' && isdigit(x[1])) shape = x;
    }
    int M, N, K;
    wmma_dims(shape, M, N, K);
    int R = which == "a" ? M : which == "b" ? K : M, Cc = which == "a" ? K : N;
    Op a = o[1], stride = o.size() > 2 ? o[2] : Op{};
    vector<Op> D = o[0].v;
    int n = bytes_of(t == "tf32" ? "b32" : t);
    int per = n == 2 ? 2 : 1;
    if (n == 1) die("wmma: " + text);
    if (stride.k == SINK) die("wmma without stride: " + text);
    return [=](Warp &w, u32 m) {
        if (m != ~0u) fault("wmma with lanes missing");
        u64 ad[32], st[32];
        addresses(w, a, ad);
        rd(w, stride, st);
        static thread_local u32 r[16][32];
        memset(r, 0, sizeof r);
        for (int i = 0; i < R; i++)
            for (int j = 0; j < Cc; j++) {
                u64 e = layout == "row" ? i * st[0] + j : j * st[0] + i;
                u8 *q = touch(w, 0, sp, ad[0] + e * n, n, false);
                Place pl = place(i, j, R, Cc, per);
                u32 v = 0;
                memcpy(&v, q, n);
                if (pl.reg < (int)D.size()) r[pl.reg][pl.lane] |= v << (16 * pl.half);
            }
        for (size_t j = 0; j < D.size(); j++) wr(w, D[j], r[j], m);
    };
}
static Fn wmma_store(const vector<string> &p, vector<Op> o) {
    string layout, shape, t = p.back();
    Space sp = Decoder::space_in(p);
    for (auto &x : p) {
        if (x == "row" || x == "col") layout = x;
        if (x[0] == 'm' && isdigit(x[1])) shape = x;
    }
    int M, N, K;
    wmma_dims(shape, M, N, K);
    Op a = o[0], stride = o[2];
    vector<Op> S = o[1].v;
    int n = bytes_of(t), per = n == 2 ? 2 : 1;
    return [=](Warp &w, u32 m) {
        if (m != ~0u) fault("wmma with lanes missing");
        u64 ad[32], st[32];
        addresses(w, a, ad);
        rd(w, stride, st);
        static thread_local u32 r[16][32];
        for (size_t j = 0; j < S.size(); j++) rd(w, S[j], r[j]);
        for (int i = 0; i < M; i++)
            for (int j = 0; j < N; j++) {
                u64 e = layout == "row" ? i * st[0] + j : j * st[0] + i;
                u8 *q = touch(w, 0, sp, ad[0] + e * n, n, true);
                Place pl = place(i, j, M, N, per);
                u32 v = r[pl.reg][pl.lane] >> (16 * pl.half);
                memcpy(q, &v, n);
            }
    };
}
static Fn wmma_mma(const vector<string> &p, vector<Op> o, const string &text) {
    // wmma.mma.sync.aligned.alayout.blayout.shape.types or shape before the layouts
    string shape;
    vector<string> types;
    for (auto &x : p) {
        if (x[0] == 'm' && isdigit(x[1])) shape = x;
        if (is_type(x)) types.push_back(x);
    }
    string td, ta, tc;
    if (types.size() == 4) {
        td = types[0];
        ta = types[1];
        tc = types[3];
    } else if (types.size() == 2) {
        td = types[0];
        tc = types[1];
        ta = "f16";
    } else die("wmma: " + text);
    int M, N, K;
    wmma_dims(shape, M, N, K);
    vector<Op> D = o[0].v, A = o[1].v, B = o[2].v, C = o[3].v;
    int pa = ta == "tf32" ? 1 : 2, pd = td == "f16" ? 2 : 1, pc = tc == "f16" ? 2 : 1;
    auto value = [](u32 v, int half, const string &t) {
        if (t == "f32") return std::bit_cast<float>(v);
        if (t == "tf32") return std::bit_cast<float>(v & ~0x1fffu);
        u16 h = v >> (16 * half);
        return t == "f16" ? h2f(h) : bf2f(h);
    };
    return [=](Warp &w, u32 m) {
        if (m != ~0u) fault("wmma with lanes missing");
        static thread_local u32 ra[16][32], rb[16][32], rc[16][32];
        static thread_local float a[32][32], b[32][32], c[32][32];
        for (size_t j = 0; j < A.size(); j++) rd(w, A[j], ra[j]);
        for (size_t j = 0; j < B.size(); j++) rd(w, B[j], rb[j]);
        for (size_t j = 0; j < C.size(); j++) rd(w, C[j], rc[j]);
        for (int i = 0; i < M; i++)
            for (int j = 0; j < K; j++) {
                Place q = place(i, j, M, K, pa);
                a[i][j] = value(ra[q.reg][q.lane], q.half, ta);
            }
        for (int i = 0; i < K; i++)
            for (int j = 0; j < N; j++) {
                Place q = place(i, j, K, N, pa);
                b[i][j] = value(rb[q.reg][q.lane], q.half, ta);
            }
        for (int i = 0; i < M; i++)
            for (int j = 0; j < N; j++) {
                Place q = place(i, j, M, N, pc);
                c[i][j] = value(rc[q.reg][q.lane], q.half, tc);
            }
        for (int i = 0; i < M; i++)
            for (int k = 0; k < K; k++)
                for (int j = 0; j < N; j++) c[i][j] += a[i][k] * b[k][j];
        static thread_local u32 r[16][32];
        memset(r, 0, sizeof r);
        for (int i = 0; i < M; i++)
            for (int j = 0; j < N; j++) {
                Place q = place(i, j, M, N, pd);
                if (td == "f16") r[q.reg][q.lane] |= (u32)f2h(c[i][j]) << (16 * q.half);
                else r[q.reg][q.lane] = std::bit_cast<u32>(c[i][j]);
            }
        for (size_t j = 0; j < D.size(); j++) wr(w, D[j], r[j], m);
    };
}
static Fn ldmatrix(const vector<string> &p, vector<Op> o, const string &text) {
    bool trans = false;
    for (auto &x : p)
        if (x == "trans") trans = true;
    if (p.back() != "b16") die("ldmatrix: " + text);
    vector<Op> D = o[0].k == VEC ? o[0].v : vector<Op>{o[0]};
    Op a = o[1];
    return [=](Warp &w, u32 m) {
        if (m != ~0u) fault("ldmatrix with lanes missing");
        u64 ad[32];
        addresses(w, a, ad);
        for (size_t k = 0; k < D.size(); k++) {
            u16 mat[8][8];
            for (int r = 0; r < 8; r++) memcpy(mat[r], touch(w, 0, SHARED, ad[k * 8 + r], 16, false), 16);
            u32 x[32];
            for (int l = 0; l < 32; l++) {
                int r = l >> 2, c = (l & 3) * 2;
                x[l] = trans ? mat[c][r] | (u32)mat[c + 1][r] << 16 : mat[r][c] | (u32)mat[r][c + 1] << 16;
            }
            wr(w, D[k], x, m);
        }
    };
}
static Fn stmatrix(const vector<string> &p, vector<Op> o) {
    bool trans = false;
    for (auto &x : p)
        if (x == "trans") trans = true;
    vector<Op> S = o[1].k == VEC ? o[1].v : vector<Op>{o[1]};
    Op a = o[0];
    return [=](Warp &w, u32 m) {
        if (m != ~0u) fault("stmatrix with lanes missing");
        u64 ad[32];
        addresses(w, a, ad);
        for (size_t k = 0; k < S.size(); k++) {
            u16 mat[8][8];
            u32 x[32];
            rd(w, S[k], x);
            for (int l = 0; l < 32; l++) {
                int r = l >> 2, c = (l & 3) * 2;
                if (trans) {
                    mat[c][r] = x[l];
                    mat[c + 1][r] = x[l] >> 16;
                } else {
                    mat[r][c] = x[l];
                    mat[r][c + 1] = x[l] >> 16;
                }
            }
            for (int r = 0; r < 8; r++) memcpy(touch(w, 0, SHARED, ad[k * 8 + r], 16, true), mat[r], 16);
        }
    };
}
