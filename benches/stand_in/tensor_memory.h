// Barriers in shared memory, and copies by the tensor memory accelerator (sm_90).
#pragma once
#include "decode.h"

struct TensorMap {
    u64 address;
    u64 strides[4];
    u32 dims[5];
    u16 box[5];
    u8 steps[5];
    u8 rank, bytes, swizzle, nan, pad;
};
static_assert(sizeof(TensorMap) <= 128);

static MBar &mbar(Warp &w, u64 a) {
    auto it = w.block->mbars.find((u32)a);
    if (it == w.block->mbars.end()) fault("mbarrier at " + std::to_string(a) + " was not made");
    return it->second;
}
static void settle(MBar &b) {
    if (b.pending <= 0 && b.tx == 0) {
        b.phase++;
        b.pending = b.count;
    }
}
static u32 swizzled(u32 a, int kind) {
    switch (kind) {
    case CU_TENSOR_MAP_SWIZZLE_32B: return a ^ ((a >> 7 & 1) << 4);
    case CU_TENSOR_MAP_SWIZZLE_64B: return a ^ ((a >> 7 & 3) << 4);
    case CU_TENSOR_MAP_SWIZZLE_128B: return a ^ ((a >> 7 & 7) << 4);
    default: return a;
    }
}
// Copies a box between memory and shared memory; returns its bytes.
static u32 tensor_copy(Warp &w, const TensorMap &t, const s32 *at, u32 shared, bool in) {
    u32 n = 1;
    for (int i = 0; i < t.rank; i++) n *= (t.box[i] + t.steps[i] - 1) / t.steps[i];
    if (shared % 128) fault("tensor copy to a misaligned address");
    for (u32 e = 0; e < n; e++) {
        u32 q = e;
        bool inside = true;
        u64 a = t.address;
        for (int i = 0; i < t.rank; i++) {
            u32 count = (t.box[i] + t.steps[i] - 1) / t.steps[i];
            s64 x = at[i] + (s64)(q % count) * t.steps[i];
            q /= count;
            if (x < 0 || x >= t.dims[i]) inside = false;
            a += x * (i == 0 ? t.bytes : (s64)t.strides[i - 1]);
        }
        u8 *s = address(w, 0, SHARED, swizzled(shared + e * t.bytes, t.swizzle), t.bytes);
        if (inside && !in_allocation(a, t.bytes, w.block->cache)) fault("tensor copy of an illegal address");
        if (in) {
            if (inside) memcpy(s, (u8 *)a, t.bytes);
            else memset(s, t.nan ? 0xff : 0, t.bytes);
        } else if (inside) memcpy((u8 *)a, s, t.bytes);
    }
    return n * t.bytes;
}

static Fn barrier_or_tma(const string &opcode, const vector<string> &p, vector<Op> &o, Inst &inst,
                         const string &text) {
    auto has = [&](const char *s) {
        for (auto &x : p)
            if (x == s) return true;
        return false;
    };
    // Generic addresses of shared memory become offsets in it.
    bool generic = p[0] == "mbarrier" && Decoder::space_in(p) == GENERIC;
    auto where = [generic](Warp &w, const Op &a, u64 *out) {
        addresses(w, a, out);
        if (generic)
            for (int i = 0; i < 32; i++) out[i] -= (u64)w.block->shared;
    };
    // What is done in each lane with a barrier's address and a number.
    auto each = [where](Op a, Op n, auto act) -> Fn {
        return [=](Warp &w, u32 m) {
            u64 x[32];
            s32 c[32] = {};
            where(w, a, x);
            if (n.k != SINK) rd(w, n, c);
            for (int i = 0; i < 32; i++)
                if (m >> i & 1) act(w, x[i], c[i]);
        };
    };
    if (p[0] == "mbarrier") {
        if (p[1] == "init")
            return each(o[0], o[1], [](Warp &w, u64 x, s32 c) { w.block->mbars[(u32)x] = {c, c, 0, 0}; });
        if (p[1] == "inval")
            return each(o[0], Op{}, [](Warp &w, u64 x, s32) { w.block->mbars.erase((u32)x); });
        if (p[1] == "expect_tx") return each(o[0], o[1], [](Warp &w, u64 x, s32 c) { mbar(w, x).tx += c; });
        if (p[1] == "complete_tx")
            return each(o[0], o[1], [](Warp &w, u64 x, s32 c) {
                auto &b = mbar(w, x);
                b.tx -= c;
                settle(b);
            });
        if (p[1] == "arrive") {
            bool expect = has("expect_tx");
            bool returns = o[0].k != ADDR;
            Op d = returns ? o[0] : Op{}, a = o[returns], n = o.size() > 1u + returns ? o[1 + returns] : Op{};
            return [=](Warp &w, u32 m) {
                u64 x[32], st[32] = {};
                s32 c[32];
                where(w, a, x);
                if (n.k != SINK) rd(w, n, c);
                else
                    for (auto &y : c) y = 1;
                for (int i = 0; i < 32; i++)
                    if (m >> i & 1) {
                        auto &b = mbar(w, x[i]);
                        st[i] = b.phase;
                        if (expect) {
                            b.tx += c[i];
                            b.pending--;
                        } else b.pending -= c[i];
                        settle(b);
                    }
                wr(w, d, st, m);
            };
        }
        if (p[1] == "try_wait" || p[1] == "test_wait") {
            bool parity = has("parity");
            Op d = o[0], a = o[1], s = o[2];
            inst.what = YIELD;
            return [=](Warp &w, u32 m) {
                u64 x[32], st[32];
                where(w, a, x);
                rd(w, s, st);
                u32 r = 0;
                for (int i = 0; i < 32; i++)
                    if (m >> i & 1) {
                        auto &b = mbar(w, x[i]);
                        bool y = parity ? (b.phase & 1) != (st[i] & 1) : b.phase != (u32)st[i];
                        r |= (u32)y << i;
                        w.block->barriers += y;
                    }
                wrp(w, d, r, m);
            };
        }
    }
    if (opcode.rfind("cp.async.mbarrier.arrive", 0) == 0) {
        bool noinc = has("noinc");
        Op a = o[0];
        bool shared = Decoder::space_in(p) == SHARED;
        return [=](Warp &w, u32 m) {
            u64 x[32];
            addresses(w, a, x);
            for (int i = 0; i < 32; i++)
                if (m >> i & 1) {
                    auto &b = mbar(w, shared ? x[i] : x[i] - (u64)w.block->shared);
                    if (noinc) b.pending--;
                    settle(b);
                }
        };
    }
    if (opcode.rfind("cp.async.bulk.commit_group", 0) == 0 ||
        opcode.rfind("cp.async.bulk.wait_group", 0) == 0 || opcode.rfind("cp.async.bulk.prefetch", 0) == 0)
        return [](Warp &, u32) {};
    if (opcode.rfind("cp.async.bulk.tensor", 0) == 0) {
        if (has("im2col") || has("reduce")) die(text);
        bool in = o[0].k == ADDR; // shared ← global
        Op map = in ? o[1].v[0] : o[0].v[0], at = in ? o[1].v[1] : o[0].v[1], sh = in ? o[0] : o[1],
           bar = in ? o[2] : Op{};
        return [=](Warp &w, u32 m) {
            u64 maps[32], s[32], bs[32];
            addresses(w, map, maps);
            addresses(w, sh, s);
            if (in) addresses(w, bar, bs);
            s32 c[5][32];
            for (size_t j = 0; j < at.v.size(); j++) rd(w, at.v[j], c[j]);
            for (int i = 0; i < 32; i++)
                if (m >> i & 1) {
                    const TensorMap &t = *(const TensorMap *)maps[i];
                    if (t.rank != at.v.size()) fault("tensor map of another rank");
                    s32 q[5];
                    for (int j = 0; j < t.rank; j++) q[j] = c[j][i];
                    u32 n = tensor_copy(w, t, q, s[i], in);
                    if (in) {
                        auto &b = mbar(w, bs[i]);
                        b.tx -= n;
                        settle(b);
                    }
                }
        };
    }
    if (opcode.rfind("cp.async.bulk.shared", 0) == 0) {
        Op d = o[0], a = o[1], n = o[2], bar = o[3];
        return [=](Warp &w, u32 m) {
            u64 x[32], y[32], bs[32];
            u32 c[32];
            addresses(w, d, x);
            addresses(w, a, y);
            rd(w, n, c);
            addresses(w, bar, bs);
            for (int i = 0; i < 32; i++)
                if (m >> i & 1) {
                    if (x[i] % 16 || y[i] % 16 || c[i] % 16) fault("bulk copy misaligned");
                    if (!in_allocation(y[i], c[i], w.block->cache))
                        fault("bulk copy from an illegal address");
                    memcpy(address(w, i, SHARED, x[i], c[i]), (u8 *)y[i], c[i]);
                    auto &b = mbar(w, bs[i]);
                    b.tx -= c[i];
                    settle(b);
                }
        };
    }
    return nullptr;
}
