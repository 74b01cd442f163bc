// Each instruction's meaning, by its name.
#pragma once
#include "arithmetic.h"
#include "tensor_cores.h"
#include "tensor_memory.h"

Fn Decoder::build(const string &opcode, const vector<string> &p, vector<Op> &o, Inst &inst,
                  const string &text) {
    const string &op = p[0];
    const string &t = p.back();
    bool sat = false, nan = false, hi = false, lo = false;
    for (auto &x : p) {
        if (x == "sat") sat = true;
        if (x == "NaN") nan = true;
        if (x == "hi") hi = true;
        if (x == "lo") lo = true;
    }
    bool fl = float_kind(t) >= 0;
    auto nop = [](Warp &, u32) {};
    if (op == "ld" || op == "ldu") return load(p, o);
    if (op == "st") return store(p, o);
    if (op == "mov") {
        if (t == "pred") {
            Op d = o[0], a = o[1];
            return [=](Warp &w, u32 m) { wrp(w, d, rdp(w, a), m); };
        }
        if (o[0].k == VEC) { // unpack
            Op a = o[1];
            auto d = o[0].v;
            int bits = bytes_of(t) * 8 / d.size();
            return [=](Warp &w, u32 m) {
                u64 x[32], r[32];
                rd(w, a, x);
                for (size_t j = 0; j < d.size(); j++) {
                    for (int i = 0; i < 32; i++)
                        r[i] = x[i] >> (bits * j) & (bits == 64 ? ~0ull : (1ull << bits) - 1);
                    wr(w, d[j], r, m);
                }
            };
        }
        if (o[1].k == VEC) {
            Op d = o[0];
            auto a = o[1].v;
            int bits = bytes_of(t) * 8 / a.size();
            return [=](Warp &w, u32 m) {
                u64 x[32], r[32] = {};
                for (size_t j = 0; j < a.size(); j++) {
                    rd(w, a[j], x);
                    for (int i = 0; i < 32; i++) r[i] |= (x[i] & ((1ull << bits) - 1)) << (bits * j);
                }
                wr(w, d, r, m);
            };
        }
        Op d = o[0], a = o[1];
        return [=](Warp &w, u32 m) {
            u64 x[32];
            rd(w, a, x);
            wr(w, d, x, m);
        };
    }
    if (op == "cvta") {
        bool to = p[1] == "to";
        Space sp = space_in(p);
        Op d = o[0], a = o[1];
        if (a.is_symbol && a.is_param) sp = PARAM;
        return [=](Warp &w, u32 m) {
            u64 x[32];
            rd(w, a, x);
            for (int i = 0; i < 32; i++) {
                u64 base = sp == SHARED  ? (u64)w.block->shared
                           : sp == LOCAL ? w.local_base(i)
                           : sp == PARAM ? (u64)w.block->params
                                         : 0;
                x[i] = to ? x[i] - base : x[i] + base;
            }
            wr(w, d, x, m);
        };
    }
    if (op == "mapa") {
        Op d = o[0], a = o[1];
        return [=](Warp &w, u32 m) {
            u64 x[32];
            rd(w, a, x);
            wr(w, d, x, m);
        };
    }
    if (op == "cvt") return convert(p, o, text);
    if (op == "setp") return compare(p, o, text);
    if (op == "selp") {
        Op d = o[0], a = o[1], b = o[2], c = o[3];
        return [=](Warp &w, u32 m) {
            u64 x[32], y[32];
            rd(w, a, x);
            rd(w, b, y);
            u32 q = rdp(w, c);
            for (int i = 0; i < 32; i++)
                if (!(q >> i & 1)) x[i] = y[i];
            wr(w, d, x, m);
        };
    }
    if (op == "addc" || (op == "add" && p[1] == "cc")) {
        bool reads = op == "addc", writes = p[1] == "cc";
        Op d = o[0], a = o[1], b = o[2];
        if (bytes_of(t) != 4) die(text);
        return [=](Warp &w, u32 m) {
            u64 x[32], y[32];
            u32 c = 0;
            rd(w, a, x);
            rd(w, b, y);
            for (int i = 0; i < 32; i++) {
                x[i] = (u64)(u32)x[i] + (u32)y[i] + (reads ? w.cc >> i & 1 : 0);
                c |= (u32)(x[i] >> 32 & 1) << i;
            }
            if (writes) w.cc = (w.cc & ~m) | (c & m);
            wr(w, d, x, m);
        };
    }
    if (op == "add") {
        if (fl) return fun(t, o, 2, FAdd{}, sat);
        INTS(t, return bin<T>(o[0], o[1], o[2], [](T x, T y) { return (T)(x + y); }));
    }
    if (op == "sub" && p[1] != "cc") {
        if (fl) return fun(t, o, 2, FSub{}, sat);
        INTS(t, return bin<T>(o[0], o[1], o[2], [](T x, T y) { return (T)(x - y); }));
    }
    if (op == "mul" || op == "mad") {
        if (fl && op == "mul") return fun(t, o, 2, FMul{}, sat);
        if (fl) return fun(t, o, 3, FFma{}, sat);
        bool mad = op == "mad";
        int n = bytes_of(t);
        bool sign = t[0] == 's';
        Op d = o[0], a = o[1], b = o[2], c = mad ? o[3] : Op{};
        if (p[1] == "cc" || opcode.find(".cc") != string::npos) die(text);
        if (lo && n == 4)
            return [=](Warp &w, u32 m) {
                u32 x[32], y[32], z[32] = {};
                rd(w, a, x);
                rd(w, b, y);
                if (mad) rd(w, c, z);
                for (int i = 0; i < 32; i++) x[i] = x[i] * y[i] + z[i];
                wr(w, d, x, m);
            };
        return [=](Warp &w, u32 m) {
            u64 x[32], y[32], z[32] = {};
            rd(w, a, x);
            rd(w, b, y);
            if (mad) rd(w, c, z);
            for (int i = 0; i < 32; i++) {
                unsigned __int128 r;
                if (sign) {
                    s64 u = n == 2   ? (s64)(s16)x[i]
                            : n == 4 ? (s64)(s32)x[i]
                                     : (s64)x[i],
                        v = n == 2   ? (s64)(s16)y[i]
                            : n == 4 ? (s64)(s32)y[i]
                                     : (s64)y[i];
                    r = (unsigned __int128)((__int128)u * v);
                } else {
                    u64 u = n == 2   ? (u16)x[i]
                            : n == 4 ? (u32)x[i]
                                     : x[i],
                        v = n == 2   ? (u16)y[i]
                            : n == 4 ? (u32)y[i]
                                     : y[i];
                    r = (unsigned __int128)u * v;
                }
                x[i] = hi ? (u64)(r >> (8 * n)) + z[i] : (u64)r + z[i];
            }
            wr(w, d, x, m);
        };
    }
    if (op == "fma") return fun(t, o, 3, FFma{}, sat);
    if (op == "div") {
        if (fl) return fun(t, o, 2, FDiv{}, false);
        INTS(t, return bin<T>(o[0], o[1], o[2], [](T x, T y) -> T {
                 if (y == 0) return (T)-1;
                 if (std::is_signed_v<T> && y == (T)-1) return (T)(0 - (std::make_unsigned_t<T>)x);
                 return (T)(x / y);
             }));
    }
    if (op == "rem")
        INTS(t, return bin<T>(o[0], o[1], o[2], [](T x, T y) -> T {
                 if (y == 0) return x;
                 if (std::is_signed_v<T> && y == (T)-1) return 0;
                 return (T)(x % y);
             }));
    if (op == "min") {
        if (fl) return nan ? fun(t, o, 2, FMinN{}, false) : fun(t, o, 2, FMin{}, false);
        INTS(t, return bin<T>(o[0], o[1], o[2], [](T x, T y) { return x < y ? x : y; }));
    }
    if (op == "max") {
        if (fl) return nan ? fun(t, o, 2, FMaxN{}, false) : fun(t, o, 2, FMax{}, false);
        INTS(t, return bin<T>(o[0], o[1], o[2], [](T x, T y) { return x > y ? x : y; }));
    }
    if (op == "neg") {
        if (fl) return fun(t, o, 1, FNeg{}, false);
        INTS(t, return un<T>(o[0], o[1], [](T x) { return (T)(0 - (u64)x); }));
    }
    if (op == "abs") {
        if (fl) return fun(t, o, 1, FAbs{}, false);
        INTS(t, return un<T>(o[0], o[1], [](T x) { return (T)(x < 0 ? (T)(0 - (u64)x) : x); }));
    }
    if (op == "rcp") return fun(t, o, 1, FRcp{}, false);
    if (op == "sqrt") return fun(t, o, 1, FSqrt{}, false);
    if (op == "rsqrt") return fun(t, o, 1, FRsqrt{}, false);
    if (op == "ex2") return fun(t, o, 1, FEx2{}, false);
    if (op == "lg2") return fun(t, o, 1, FLg2{}, false);
    if (op == "sin") return fun(t, o, 1, FSin{}, false);
    if (op == "cos") return fun(t, o, 1, FCos{}, false);
    if (op == "tanh") return fun(t, o, 1, FTanh{}, false);
    if (op == "copysign") { // sign of a, magnitude of b
        if (t != "f32") die(text);
        return bin<u32>(o[0], o[1], o[2], [](u32 x, u32 y) { return (x & 0x80000000u) | (y & 0x7fffffffu); });
    }
    if (op == "testp") {
        string q = p[1];
        Op d = o[0], a = o[1];
        int fk = float_kind(t);
        return [=](Warp &w, u32 m) {
            double x[32];
            rd_float(w, a, fk, 0, x);
            u32 r = 0;
            for (int i = 0; i < 32; i++) {
                bool y = q == "finite"       ? std::isfinite(x[i])
                         : q == "infinite"   ? std::isinf(x[i])
                         : q == "number"     ? !std::isnan(x[i])
                         : q == "notanumber" ? std::isnan(x[i])
                                             : (die(q), false);
                r |= (u32)y << i;
            }
            wrp(w, d, r, m);
        };
    }
    if (op == "and" || op == "or" || op == "xor") {
        if (t == "pred") {
            Op d = o[0], a = o[1], b = o[2];
            int c = op[0];
            return [=](Warp &w, u32 m) {
                u32 x = rdp(w, a), y = rdp(w, b);
                wrp(w, d, c == 'a' ? x & y : c == 'o' ? x | y : x ^ y, m);
            };
        }
        if (op == "and") INTS(t, return bin<T>(o[0], o[1], o[2], [](T x, T y) { return (T)(x & y); }));
        if (op == "or") INTS(t, return bin<T>(o[0], o[1], o[2], [](T x, T y) { return (T)(x | y); }));
        if (op == "xor") INTS(t, return bin<T>(o[0], o[1], o[2], [](T x, T y) { return (T)(x ^ y); }));
    }
    if (op == "not") {
        if (t == "pred") {
            Op d = o[0], a = o[1];
            return [=](Warp &w, u32 m) { wrp(w, d, ~rdp(w, a), m); };
        }
        INTS(t, return un<T>(o[0], o[1], [](T x) { return (T)~x; }));
    }
    if (op == "shl" || op == "shr") {
        Op d = o[0], a = o[1], b = o[2];
        bool left = op == "shl";
#define SHIFT(T)                                                                                             \
    [=](Warp &w, u32 m) {                                                                                    \
        T x[32];                                                                                             \
        u32 y[32];                                                                                           \
        rd(w, a, x);                                                                                         \
        rd(w, b, y);                                                                                         \
        const u32 bits = sizeof(T) * 8;                                                                      \
        for (int i = 0; i < 32; i++)                                                                         \
            x[i] = left                                                                                      \
                       ? (y[i] >= bits ? (T)0 : (T)(x[i] << y[i]))                                           \
                       : (y[i] >= bits ? (T)(std::is_signed_v<T> && x[i] < 0 ? -1 : 0) : (T)(x[i] >> y[i])); \
        wr(w, d, x, m);                                                                                      \
    }
        INTS(t, return SHIFT(T));
    }
    if (op == "shf") {
        bool left = p[1] == "l", wrap = p[2] == "wrap";
        Op d = o[0], a = o[1], b = o[2], c = o[3];
        return [=](Warp &w, u32 m) {
            u32 x[32], y[32], z[32];
            rd(w, a, x);
            rd(w, b, y);
            rd(w, c, z);
            for (int i = 0; i < 32; i++) {
                u32 n = wrap ? z[i] & 31 : std::min(z[i], 32u);
                u64 v = (u64)y[i] << 32 | x[i];
                x[i] = left ? (u32)((v << n) >> 32) : (u32)(v >> n);
                if (left && n == 32) x[i] = (u32)v;
            }
            wr(w, d, x, m);
        };
    }
    if (op == "prmt") {
        if (p.size() > 2) die(text);
        return tern<u32>(o[0], o[1], o[2], o[3], [](u32 x, u32 y, u32 s) {
            u64 v = (u64)y << 32 | x;
            u32 r = 0;
            for (int j = 0; j < 4; j++) {
                u32 q = s >> (4 * j) & 15;
                u8 b = v >> (8 * (q & 7));
                if (q & 8) b = b & 0x80 ? 0xff : 0;
                r |= (u32)b << (8 * j);
            }
            return r;
        });
    }
    if (op == "bfe") {
        Op d = o[0], a = o[1], b = o[2], c = o[3];
        bool sign = t[0] == 's';
        int bits = bytes_of(t) * 8;
        return [=](Warp &w, u32 m) {
            u64 x[32];
            u32 y[32], z[32];
            rd(w, a, x);
            rd(w, b, y);
            rd(w, c, z);
            for (int i = 0; i < 32; i++) {
                u32 pos = y[i] & 255, len = z[i] & 255;
                u64 v = bits == 32 ? (u64)(u32)x[i] : x[i];
                if (len == 0) {
                    x[i] = 0;
                    continue;
                }
                if (sign) {
                    s64 q = bits == 32 ? (s64)(s32)v : (s64)v;
                    q >>= std::min(pos, 63u);
                    if (len < 64) q = (s64)((u64)q << (64 - len)) >> (64 - len);
                    x[i] = (u64)q;
                } else {
                    v = pos > 63 ? 0 : v >> pos;
                    if (len < 64) v &= (1ull << len) - 1;
                    x[i] = v;
                }
            }
            wr(w, d, x, m);
        };
    }
    if (op == "bfi") {
        Op d = o[0], a = o[1], b = o[2], c = o[3], e = o[4];
        return [=](Warp &w, u32 m) {
            u64 x[32], y[32];
            u32 z[32], q[32];
            rd(w, a, x);
            rd(w, b, y);
            rd(w, c, z);
            rd(w, e, q);
            for (int i = 0; i < 32; i++) {
                u32 pos = z[i] & 255, len = q[i] & 255;
                u64 mask = len >= 64 ? ~0ull : (1ull << len) - 1;
                if (pos > 63) mask = 0;
                else mask <<= pos;
                x[i] = (y[i] & ~mask) | (pos > 63 ? 0 : (x[i] << pos) & mask);
            }
            wr(w, d, x, m);
        };
    }
    if (op == "lop3") {
        Op d = o[0], a = o[1], b = o[2], c = o[3];
        u32 lut = o[4].imm;
        return [=](Warp &w, u32 m) {
            u32 x[32], y[32], z[32], r[32] = {};
            rd(w, a, x);
            rd(w, b, y);
            rd(w, c, z);
            for (int i = 0; i < 32; i++)
                for (int j = 0; j < 8; j++)
                    if (lut >> j & 1)
                        r[i] |= (j & 4 ? x[i] : ~x[i]) & (j & 2 ? y[i] : ~y[i]) & (j & 1 ? z[i] : ~z[i]);
            wr(w, d, r, m);
        };
    }
    if (op == "popc") {
        if (t == "b64") return un<u64>(o[0], o[1], [](u64 x) { return (u64)__builtin_popcountll(x); });
        return un<u32>(o[0], o[1], [](u32 x) { return (u32)__builtin_popcount(x); });
    }
    if (op == "clz") {
        if (t == "b64") return un<u64>(o[0], o[1], [](u64 x) { return x ? (u64)__builtin_clzll(x) : 64; });
        return un<u32>(o[0], o[1], [](u32 x) { return x ? (u32)__builtin_clz(x) : 32; });
    }
    if (op == "brev")
        return un<u32>(o[0], o[1], [](u32 x) {
            u32 r = 0;
            for (int i = 0; i < 32; i++) r |= (x >> i & 1) << (31 - i);
            return r;
        });
    if (op == "bfind" && t == "u32")
        return un<u32>(o[0], o[1], [](u32 x) { return x ? 31u - __builtin_clz(x) : ~0u; });
    if (op == "shfl") {
        string mode = p[2];
        Op d = o[0], q;
        if (d.k == VEC) {
            q = d.v[1];
            d = d.v[0];
        }
        Op a = o[1], b = o[2], c = o[3];
        int md = mode == "up" ? 0 : mode == "down" ? 1 : mode == "bfly" ? 2 : 3;
        return [=](Warp &w, u32 m) {
            u32 x[32], y[32], z[32], r[32];
            rd(w, a, x);
            rd(w, b, y);
            rd(w, c, z);
            u32 ok = 0;
            for (int i = 0; i < 32; i++) {
                r[i] = x[i];
                u32 bval = y[i] & 31, cval = z[i] & 31, seg = z[i] >> 8 & 31;
                u32 maxl = (i & seg) | (cval & ~seg), minl = i & seg;
                int j;
                bool valid;
                if (md == 0) {
                    j = i - (int)bval;
                    valid = j >= (int)maxl;
                } else if (md == 1) {
                    j = i + bval;
                    valid = j <= (int)maxl;
                } else if (md == 2) {
                    j = i ^ bval;
                    valid = j <= (int)maxl;
                } else {
                    j = minl | (bval & ~seg);
                    valid = j <= (int)maxl;
                }
                if (!valid) j = i;
                if ((m >> i & 1) && !(m >> j & 1)) fault("shuffle from a lane that is not there");
                r[i] = x[j];
                ok |= (u32)valid << i;
            }
            wr(w, d, r, m);
            if (q.k == PRED) wrp(w, q, ok, m);
        };
    }
    if (op == "vote") {
        string mode = p[2];
        Op d = o[0], a = o[1];
        return [=](Warp &w, u32 m) {
            u32 v = rdp(w, a) & m;
            if (mode == "ballot") {
                u32 r[32];
                for (int i = 0; i < 32; i++) r[i] = v;
                wr(w, d, r, m);
                return;
            }
            bool r = mode == "all" ? v == m : mode == "any" ? v != 0 : v == m || v == 0;
            wrp(w, d, r ? ~0u : 0, m);
        };
    }
    if (op == "activemask") {
        Op d = o[0];
        return [=](Warp &w, u32 m) {
            u32 r[32];
            for (int i = 0; i < 32; i++) r[i] = m;
            wr(w, d, r, m);
        };
    }
    if (op == "elect") {
        Op d = o[0];
        return [=](Warp &w, u32 m) {
            u32 first = m & -m;
            u32 r[32];
            for (int i = 0; i < 32; i++) r[i] = __builtin_ctz(first);
            wr(w, d.v[0], r, m);
            wrp(w, d.v[1], first, m);
        };
    }
    if (op == "redux") {
        string mode = p[2];
        Op d = o[0], a = o[1];
        return [=](Warp &w, u32 m) {
            u32 x[32], r[32];
            rd(w, a, x);
            bool first = true;
            u32 acc = 0;
            for (int i = 0; i < 32; i++)
                if (m >> i & 1) {
                    if (first) acc = x[i];
                    else if (mode == "add") acc += x[i];
                    else if (mode == "and") acc &= x[i];
                    else if (mode == "or") acc |= x[i];
                    else if (mode == "xor") acc ^= x[i];
                    else if (t == "s32")
                        acc = mode == "min" ? std::min((s32)acc, (s32)x[i]) : std::max((s32)acc, (s32)x[i]);
                    else acc = mode == "min" ? std::min(acc, x[i]) : std::max(acc, x[i]);
                    first = false;
                }
            for (int i = 0; i < 32; i++) r[i] = acc;
            wr(w, d, r, m);
        };
    }
    if (op == "atom") return atomic_op(p, o, text, false);
    if (op == "red") return atomic_op(p, o, text, true);
    if (op == "mma") return mma_sync(p, o, text);
    if (op == "wmma") {
        if (p[1] == "load") return wmma_load(p, o, text);
        if (p[1] == "store") return wmma_store(p, o);
        return wmma_mma(p, o, text);
    }
    if (op == "ldmatrix") return ldmatrix(p, o, text);
    if (op == "stmatrix") return stmatrix(p, o);
    if (op == "membar" || op == "fence" || op == "nanosleep" || op == "prefetch" || op == "prefetchu" ||
        op == "discard" || op == "griddepcontrol" || op == "setmaxnreg" || op == "pmevent")
        return nop;
    if (op == "trap") return [](Warp &, u32) { fault("trap"); };
    if (op == "cp" && p[1] == "async" && (p[2] == "ca" || p[2] == "cg")) {
        Op d = o[0], a = o[1], n = o[2], q = o.size() > 3 ? o[3] : o[2];
        return [=](Warp &w, u32 m) {
            u64 x[32], y[32];
            u32 bytes[32], src[32];
            addresses(w, d, x);
            addresses(w, a, y);
            rd(w, n, bytes);
            if (q.k == PRED) {
                u32 ig = rdp(w, q);
                for (int i = 0; i < 32; i++) src[i] = ig >> i & 1 ? 0 : bytes[i];
            } else rd(w, q, src);
            for (int i = 0; i < 32; i++)
                if (m >> i & 1) {
                    if (x[i] % bytes[i]) fault("cp.async to a misaligned address");
                    u8 *to = touch(w, i, SHARED, x[i], bytes[i], true);
                    u32 k = std::min(src[i], bytes[i]);
                    if (y[i] % bytes[i]) {
                        char t[80];
                        snprintf(t, 80, "cp.async of %u of %u bytes from the misaligned %llx", k, bytes[i], (unsigned long long)y[i]);
                        fault(t);
                    }
                    if (k) {
                        if (!in_allocation(y[i], k, w.block->cache))
                            fault("cp.async from an illegal address");
                        memcpy(to, (u8 *)y[i], k);
                    }
                    memset(to + k, 0, bytes[i] - k);
                }
        };
    }
    if (op == "cp" && p[1] == "async" &&
        (p[2] == "commit_group" || p[2] == "wait_group" || p[2] == "wait_all"))
        return nop;
    if (Fn f = barrier_or_tma(opcode, p, o, inst, text)) return f;
    die("instruction not known: " + text);
}
