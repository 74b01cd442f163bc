// Arithmetic, conversions, comparisons, loads, stores and atomics.
#pragma once
#include "decode.h"

template <class T, class F> static Fn un(Op d, Op a, F f) {
    return [=](Warp &w, u32 m) {
        T x[32], r[32];
        rd(w, a, x);
        for (int i = 0; i < 32; i++) r[i] = f(x[i]);
        wr(w, d, r, m);
    };
}
template <class T, class F> static Fn bin(Op d, Op a, Op b, F f) {
    return [=](Warp &w, u32 m) {
        T x[32], y[32], r[32];
        rd(w, a, x);
        rd(w, b, y);
        for (int i = 0; i < 32; i++) r[i] = f(x[i], y[i]);
        wr(w, d, r, m);
    };
}
template <class T, class F> static Fn tern(Op d, Op a, Op b, Op c, F f) {
    return [=](Warp &w, u32 m) {
        T x[32], y[32], z[32], r[32];
        rd(w, a, x);
        rd(w, b, y);
        rd(w, c, z);
        for (int i = 0; i < 32; i++) r[i] = f(x[i], y[i], z[i]);
        wr(w, d, r, m);
    };
}
// The same over floats of any type: read to float (or double), written rounded.
static void rd_float(Warp &w, const Op &o, int kind, int half, double *out) {
    if (kind == 0) {
        float x[32];
        rdf(w, o, x);
        for (int i = 0; i < 32; i++) out[i] = x[i];
    } else if (kind == 1) rdd(w, o, out);
    else {
        u32 x[32];
        rd(w, o, x);
        for (int i = 0; i < 32; i++) {
            u16 h = x[i] >> (16 * half);
            out[i] = kind == 2 ? h2f(h) : bf2f(h);
        }
    }
}
static int float_kind(const string &t) {
    return t == "f32"                       ? 0
           : t == "f64"                     ? 1
           : (t == "f16" || t == "f16x2")   ? 2
           : (t == "bf16" || t == "bf16x2") ? 3
                                            : -1;
}
static bool packed(const string &t) { return t == "f16x2" || t == "bf16x2"; }

template <class F> static Fn fun(const string &t, vector<Op> o, int n, F f, bool sat) {
    int kind = float_kind(t);
    bool two = packed(t);
    Op d = o[0];
    Op a = o[1], b = n > 1 ? o[2] : o[1], c = n > 2 ? o[3] : o[1];
    if (kind == 0)
        return [=](Warp &w, u32 m) { // the usual case
            float x[32], y[32], z[32], r[32];
            rdf(w, a, x);
            if (n > 1) rdf(w, b, y);
            else memset(y, 0, sizeof y);
            if (n > 2) rdf(w, c, z);
            else memset(z, 0, sizeof z);
            for (int i = 0; i < 32; i++) r[i] = f(x[i], y[i], z[i]);
            if (sat)
                for (int i = 0; i < 32; i++) r[i] = r[i] > 1 ? 1 : r[i] > 0 ? r[i] : 0;
            wrf(w, d, r, m);
        };
    if (kind == 1)
        return [=](Warp &w, u32 m) {
            double x[32], y[32], z[32], r[32];
            rdd(w, a, x);
            rdd(w, b, y);
            rdd(w, c, z);
            for (int i = 0; i < 32; i++) r[i] = f(x[i], y[i], z[i]);
            wrd(w, d, r, m);
        };
    return [=](Warp &w, u32 m) {
        u32 r[32] = {};
        for (int h = 0; h < (two ? 2 : 1); h++) {
            double x[32], y[32], z[32];
            rd_float(w, a, kind, h, x);
            rd_float(w, b, kind, h, y);
            rd_float(w, c, kind, h, z);
            for (int i = 0; i < 32; i++) {
                float v = (float)f(x[i], y[i], z[i]);
                if (sat) v = v > 1 ? 1 : v > 0 ? v : 0;
                r[i] |= (u32)(kind == 2 ? f2h(v) : f2bf(v)) << (16 * h);
            }
        }
        wr(w, d, r, m);
    };
}
struct FAdd {
    template <class T> T operator()(T x, T y, T) const { return x + y; }
};
struct FSub {
    template <class T> T operator()(T x, T y, T) const { return x - y; }
};
struct FMul {
    template <class T> T operator()(T x, T y, T) const { return x * y; }
};
struct FDiv {
    template <class T> T operator()(T x, T y, T) const { return x / y; }
};
struct FFma {
    template <class T> T operator()(T x, T y, T z) const { return std::fma(x, y, z); }
};
struct FMin {
    template <class T> T operator()(T x, T y, T) const {
        return std::isnan(x) ? y : std::isnan(y) ? x : x < y ? x : y;
    }
};
struct FMax {
    template <class T> T operator()(T x, T y, T) const {
        return std::isnan(x) ? y : std::isnan(y) ? x : x > y ? x : y;
    }
};
struct FMinN {
    template <class T> T operator()(T x, T y, T) const {
        return std::isnan(x) ? x : std::isnan(y) ? y : x < y ? x : y;
    }
};
struct FMaxN {
    template <class T> T operator()(T x, T y, T) const {
        return std::isnan(x) ? x : std::isnan(y) ? y : x > y ? x : y;
    }
};
struct FNeg {
    template <class T> T operator()(T x, T, T) const { return -x; }
};
struct FAbs {
    template <class T> T operator()(T x, T, T) const { return std::fabs(x); }
};
struct FRcp {
    template <class T> T operator()(T x, T, T) const { return 1 / x; }
};
struct FSqrt {
    template <class T> T operator()(T x, T, T) const { return std::sqrt(x); }
};
struct FRsqrt {
    template <class T> T operator()(T x, T, T) const { return 1 / std::sqrt(x); }
};
struct FEx2 {
    template <class T> T operator()(T x, T, T) const { return std::exp2(x); }
};
struct FLg2 {
    template <class T> T operator()(T x, T, T) const { return std::log2(x); }
};
struct FSin {
    template <class T> T operator()(T x, T, T) const { return std::sin(x); }
};
struct FCos {
    template <class T> T operator()(T x, T, T) const { return std::cos(x); }
};
struct FTanh {
    template <class T> T operator()(T x, T, T) const { return std::tanh(x); }
};

// `E` for the integer type `T` that `t` names.
#define INT(t, name, other, type, ...)                                                                       \
    if (t == name || t == other) {                                                                           \
        typedef type T;                                                                                      \
        __VA_ARGS__;                                                                                         \
    }
#define INTS(t, E)                                                                                           \
    {INT(t, "u16", "b16", u16, E) INT(t, "s16", "s16", s16, E) INT(t, "u32", "b32", u32, E)                  \
         INT(t, "s32", "s32", s32, E) INT(t, "u64", "b64", u64, E) INT(t, "s64", "s64", s64, E)}

template <class T> static T clamp_from(double x) {
    if (std::isnan(x)) return 0;
    double lo = (double)std::numeric_limits<T>::min(), hi = (double)std::numeric_limits<T>::max();
    if (x <= lo) return std::numeric_limits<T>::min();
    if (x >= hi) return std::numeric_limits<T>::max();
    return (T)x;
}

static Fn convert(const vector<string> &p, vector<Op> o, const string &text) {
    // cvt.{modes}.dst.src
    string dt = p[p.size() - 2], st = p[p.size() - 1];
    string mode;
    bool sat = false, relu = false;
    for (size_t i = 1; i + 2 < p.size(); i++) {
        if (p[i] == "sat") sat = true;
        else if (p[i] == "relu") relu = true;
        else if (p[i] == "ftz") {
        } else if (p[i] == "satfinite") die("cvt: " + text);
        else mode = p[i];
    }
    Op d = o[0], a = o[1];
    if (packed(dt)) { // d = {a: high, b: low}
        Op b = o[2];
        bool half = dt == "f16x2";
        if (st != "f32") die("cvt: " + text);
        if (mode != "rn") die("cvt: " + text);
        return [=](Warp &w, u32 m) {
            float x[32], y[32];
            rdf(w, a, x);
            rdf(w, b, y);
            u32 r[32];
            for (int i = 0; i < 32; i++) {
                float hx = relu && x[i] < 0 ? 0 : x[i], hy = relu && y[i] < 0 ? 0 : y[i];
                r[i] = half ? (u32)f2h(hx) << 16 | f2h(hy) : (u32)f2bf(hx) << 16 | f2bf(hy);
            }
            wr(w, d, r, m);
        };
    }
    if (dt == "tf32")
        return [=](Warp &w, u32 m) { // rna: to nearest, ties away
            u32 x[32];
            rd(w, a, x);
            for (int i = 0; i < 32; i++)
                if ((x[i] & 0x7f800000) != 0x7f800000) x[i] = (x[i] + 0x1000) & ~0x1fffu;
            wr(w, d, x, m);
        };
    int sk = float_kind(st), dk = float_kind(dt);
    if (sk < 0 && dk < 0) { // integers
        int sb = bytes_of(st), db = bytes_of(dt);
        bool ssigned = st[0] == 's', dsigned = dt[0] == 's';
        return [=](Warp &w, u32 m) {
            u64 x[32];
            rd(w, a, x);
            for (int i = 0; i < 32; i++) {
                s64 v;
                switch (sb) {
                case 1: v = ssigned ? (s64)(s8)x[i] : (s64)(u8)x[i]; break;
                case 2: v = ssigned ? (s64)(s16)x[i] : (s64)(u16)x[i]; break;
                case 4: v = ssigned ? (s64)(s32)x[i] : (s64)(u32)x[i]; break;
                default: v = x[i];
                }
                if (sat) {
                    __int128 q = (sb == 8 && !ssigned) ? (__int128)(u64)v : (__int128)v;
                    __int128 lo = dsigned ? -((__int128)1 << (8 * db - 1)) : 0,
                             hi = dsigned ? ((__int128)1 << (8 * db - 1)) - 1 : ((__int128)1 << (8 * db)) - 1;
                    v = (s64)(q < lo ? lo : q > hi ? hi : q);
                }
                // sign or zero extension to the register by the destination's type
                switch (db) {
                case 1: v = dsigned ? (s64)(s8)v : (s64)(u8)v; break;
                case 2: v = dsigned ? (s64)(s16)v : (s64)(u16)v; break;
                case 4: v = dsigned ? (s64)(s32)v : (s64)(u32)v; break;
                }
                x[i] = (u64)v;
            }
            wr(w, d, x, m);
        };
    }
    if (sk < 0) { // integer to float
        int sb = bytes_of(st);
        bool ssigned = st[0] == 's';
        if (mode != "rn" && !(mode == "rz" || mode == "rp" || mode == "rm")) die("cvt: " + text);
        bool directed = mode != "rn";
        return [=](Warp &w, u32 m) {
            u64 x[32];
            rd(w, a, x);
            u64 r[32];
            for (int i = 0; i < 32; i++) {
                s64 v;
                bool u = false;
                switch (sb) {
                case 1: v = ssigned ? (s64)(s8)x[i] : (s64)(u8)x[i]; break;
                case 2: v = ssigned ? (s64)(s16)x[i] : (s64)(u16)x[i]; break;
                case 4: v = ssigned ? (s64)(s32)x[i] : (s64)(u32)x[i]; break;
                default: v = x[i]; u = !ssigned;
                }
                if (dk == 1) {
                    double q = u ? (double)(u64)v : (double)v;
                    memcpy(&r[i], &q, 8);
                } else {
                    float f = u ? (float)(u64)v : (float)v;
                    if (directed) {
                        long double t = u ? (long double)(u64)v : (long double)v;
                        if (mode == "rz" && std::fabs((long double)f) > std::fabs(t))
                            f = std::nextafter(f, 0.f);
                        if (mode == "rp" && f < t) f = std::nextafter(f, INFINITY);
                        if (mode == "rm" && f > t) f = std::nextafter(f, -INFINITY);
                    }
                    r[i] = dk == 0 ? std::bit_cast<u32>(f) : dk == 2 ? f2h(f) : f2bf(f);
                }
            }
            wr(w, d, r, m);
        };
    }
    if (dk < 0) { // float to integer
        int db = bytes_of(dt);
        bool dsigned = dt[0] == 's';
        return [=](Warp &w, u32 m) {
            double x[32];
            rd_float(w, a, sk, 0, x);
            u64 r[32];
            for (int i = 0; i < 32; i++) {
                double v = x[i];
                v = mode == "rni"   ? std::nearbyint(v)
                    : mode == "rmi" ? std::floor(v)
                    : mode == "rpi" ? std::ceil(v)
                                    : std::trunc(v);
                switch (db) {
                case 1: r[i] = dsigned ? (u64)(s64)clamp_from<s8>(v) : clamp_from<u8>(v); break;
                case 2: r[i] = dsigned ? (u64)(s64)clamp_from<s16>(v) : clamp_from<u16>(v); break;
                case 4: r[i] = dsigned ? (u64)(s64)clamp_from<s32>(v) : clamp_from<u32>(v); break;
                default: r[i] = dsigned ? (u64)clamp_from<s64>(v) : clamp_from<u64>(v);
                }
            }
            wr(w, d, r, m);
        };
    }
    // float to float
    bool integral = mode == "rni" || mode == "rzi" || mode == "rmi" || mode == "rpi";
    if (!mode.empty() && mode != "rn" && !integral && !(mode == "rz" || mode == "rm" || mode == "rp"))
        die("cvt: " + text);
    if (mode == "rz" || mode == "rm" || mode == "rp") die("cvt: " + text);
    return [=](Warp &w, u32 m) {
        double x[32];
        rd_float(w, a, sk, 0, x);
        u64 r[32];
        for (int i = 0; i < 32; i++) {
            double v = x[i];
            if (integral)
                v = mode == "rni"   ? std::nearbyint(v)
                    : mode == "rmi" ? std::floor(v)
                    : mode == "rpi" ? std::ceil(v)
                                    : std::trunc(v);
            if (sat) v = v > 1 ? 1 : v > 0 ? v : 0;
            if (relu && v < 0) v = 0;
            if (dk == 1) memcpy(&r[i], &v, 8);
            else {
                float f = (float)v;
                r[i] = dk == 0 ? std::bit_cast<u32>(f) : dk == 2 ? f2h(f) : f2bf(f);
            }
        }
        wr(w, d, r, m);
    };
}

static Fn compare(const vector<string> &p, vector<Op> o, const string &text) {
    string cmp = p[1], t = p.back();
    string boolop;
    if (p.size() > 3)
        for (size_t i = 2; i + 1 < p.size(); i++)
            if (p[i] == "and" || p[i] == "or" || p[i] == "xor") boolop = p[i];
    Op d = o[0], a = o[1], b = o[2], c = boolop.empty() ? Op{} : o[3];
    Op d1 = d, d2;
    if (d.k == VEC) {
        d1 = d.v[0];
        d2 = d.v[1];
    }
    int bo = boolop.empty() ? 0 : boolop[0];
    auto finish = [=](Warp &w, u32 r, u32 m) {
        u32 n = ~r;
        if (bo) {
            u32 q = rdp(w, c);
            if (bo == 'a') {
                r &= q;
                n &= q;
            } else if (bo == 'o') {
                r |= q;
                n |= q;
            } else {
                r ^= q;
                n ^= q;
            }
        }
        wrp(w, d1, r, m);
        if (d2.k == PRED) wrp(w, d2, n, m);
    };
    int fk = float_kind(t);
    if (fk >= 0) {
        bool two = packed(t);
        if (two && d.k != VEC) die("setp: " + text);
        static const std::map<string, int> codes = {
            {"eq", 0},  {"ne", 1},   {"lt", 2},   {"le", 3},   {"gt", 4},   {"ge", 5},   {"equ", 8},
            {"neu", 9}, {"ltu", 10}, {"leu", 11}, {"gtu", 12}, {"geu", 13}, {"num", 16}, {"nan", 17}};
        auto it = codes.find(cmp);
        if (it == codes.end()) die("setp: " + text);
        int code = it->second;
        auto test = [code](double x, double y) {
            bool n = std::isnan(x) || std::isnan(y);
            if (code == 16) return !n;
            if (code == 17) return n;
            if (n) return (code & 8) != 0;
            switch (code & 7) {
            case 0: return x == y;
            case 1: return x != y;
            case 2: return x < y;
            case 3: return x <= y;
            case 4: return x > y;
            default: return x >= y;
            }
        };
        return [=](Warp &w, u32 m) {
            double x[32], y[32];
            u32 r = 0;
            rd_float(w, a, fk, 0, x);
            rd_float(w, b, fk, 0, y);
            for (int i = 0; i < 32; i++) r |= (u32)test(x[i], y[i]) << i;
            if (!two) {
                finish(w, r, m);
                return;
            }
            u32 q = 0;
            rd_float(w, a, fk, 1, x);
            rd_float(w, b, fk, 1, y);
            for (int i = 0; i < 32; i++) q |= (u32)test(x[i], y[i]) << i;
            wrp(w, d1, r, m);
            wrp(w, d2, q, m);
        };
    }
    static const std::map<string, int> icodes = {{"eq", 0}, {"ne", 1}, {"lt", 2}, {"lo", 2}, {"le", 3},
                                                 {"ls", 3}, {"gt", 4}, {"hi", 4}, {"ge", 5}, {"hs", 5}};
    if (!icodes.count(cmp)) die("setp: " + text);
    int ic = icodes.at(cmp);
#define CMP(T)                                                                                               \
    [=](Warp &w, u32 m) {                                                                                    \
        T x[32], y[32];                                                                                      \
        u32 r = 0;                                                                                           \
        rd(w, a, x);                                                                                         \
        rd(w, b, y);                                                                                         \
        if (ic == 0)                                                                                         \
            for (int i = 0; i < 32; i++) r |= (u32)(x[i] == y[i]) << i;                                      \
        else if (ic == 1)                                                                                    \
            for (int i = 0; i < 32; i++) r |= (u32)(x[i] != y[i]) << i;                                      \
        else if (ic == 2)                                                                                    \
            for (int i = 0; i < 32; i++) r |= (u32)(x[i] < y[i]) << i;                                       \
        else if (ic == 3)                                                                                    \
            for (int i = 0; i < 32; i++) r |= (u32)(x[i] <= y[i]) << i;                                      \
        else if (ic == 4)                                                                                    \
            for (int i = 0; i < 32; i++) r |= (u32)(x[i] > y[i]) << i;                                       \
        else                                                                                                 \
            for (int i = 0; i < 32; i++) r |= (u32)(x[i] >= y[i]) << i;                                      \
        finish(w, r, m);                                                                                     \
    }
    INTS(t, return CMP(T));
    die("setp: " + text);
}

// Host addresses of a warp's access, checked: all at once where they lie in one allocation.
static inline void pointers(Warp &w, u32 m, Space sp, const u64 *ad, u32 n, u8 **q) {
    Block &b = *w.block;
    if (sp == SHARED || sp == GLOBAL) {
        u64 lo = ~0ull, hi = 0, low = 0;
        for (int i = 0; i < 32; i++) {
            u64 x = ad[i];
            bool on = m >> i & 1;
            lo = on && x < lo ? x : lo;
            hi = on && x > hi ? x : hi;
            low |= on ? x : 0;
        }
        bool fine = (low & (n - 1)) == 0;
        if (fine && sp == SHARED && hi + n <= b.shared_size) {
            for (int i = 0; i < 32; i++) q[i] = b.shared + ad[i];
            return;
        }
        if (fine && sp == GLOBAL && b.cache.epoch == epoch.load(std::memory_order_relaxed) &&
            lo >= b.cache.lo && hi + n <= b.cache.hi) {
            for (int i = 0; i < 32; i++) q[i] = (u8 *)ad[i];
            return;
        }
    }
    for (int i = 0; i < 32; i++) q[i] = m >> i & 1 ? address(w, i, sp, ad[i], n) : nullptr;
}
// Ends the program where a block touches what another block of the same launch wrote: there is no
// order between them. Atomics are not looked at.
static void races(Warp &w, u32 m, u8 *const *q, u32 n, bool write, bool constant = false) {
    struct Written {
        u64 launch, block;
    };
    static std::mutex lock;
    static std::unordered_map<u8 *, Written> bytes;
    std::lock_guard l(lock);
    for (int i = 0; i < 32; i++)
        for (u32 j = 0; (m >> i & 1) && j < n; j++) {
            auto found = bytes.find(q[i] + j);
            bool same = found != bytes.end() && found->second.launch == w.block->launch;
            if (same && found->second.block != w.block->index)
                fault("block " + std::to_string(w.block->index) + (write ? " writes" : " reads") +
                      " what block " + std::to_string(found->second.block) + " wrote");
            if (same && constant) fault("reads as constant what this launch wrote");
            if (write) bytes[q[i] + j] = {w.block->launch, w.block->index};
        }
}
static Fn load(const vector<string> &p, vector<Op> o) {
    Space sp = Decoder::space_in(p);
    string t = p.back();
    int n = bytes_of(t);
    bool sign = t[0] == 's';
    Op d = o[0], a = o[1];
    vector<Op> ds = d.k == VEC ? d.v : vector<Op>{d};
    int count = ds.size();
    if (a.is_symbol && sp == GENERIC) sp = a.sym_space;
    int total = n * count;
    bool constant = std::find(p.begin(), p.end(), "nc") != p.end();
    return [=](Warp &w, u32 m) {
        u64 ad[32];
        addresses(w, a, ad);
        u8 *q[32];
        pointers(w, m, sp, ad, total, q);
        if (RACES && sp == GLOBAL) races(w, m, q, total, false, constant);
        for (int i = 0; SHARED_RACES && i < 32; i++)
            if (m >> i & 1) shared_race(w, q[i], total, false);
        for (int j = 0; j < count; j++) {
            const Op &d = ds[j];
            if (d.k == SINK) continue;
            u8 *base = w.regs + d.off;
            if (!sign && n == d.w) {
                if (n == 4) {
                    u32 *z = (u32 *)base;
                    for (int i = 0; i < 32; i++)
                        if (m >> i & 1) memcpy(&z[i], q[i] + j * 4, 4);
                } else if (n == 8) {
                    u64 *z = (u64 *)base;
                    for (int i = 0; i < 32; i++)
                        if (m >> i & 1) memcpy(&z[i], q[i] + j * 8, 8);
                } else {
                    u16 *z = (u16 *)base;
                    for (int i = 0; i < 32; i++)
                        if (m >> i & 1) memcpy(&z[i], q[i] + j * 2, 2);
                }
                continue;
            }
            u64 r[32] = {};
            for (int i = 0; i < 32; i++)
                if (m >> i & 1) {
                    u64 v = 0;
                    memcpy(&v, q[i] + j * n, n);
                    if (sign)
                        v = n == 1   ? (u64)(s64)(s8)v
                            : n == 2 ? (u64)(s64)(s16)v
                            : n == 4 ? (u64)(s64)(s32)v
                                     : v;
                    r[i] = v;
                }
            wr(w, d, r, m);
        }
    };
}
static Fn store(const vector<string> &p, vector<Op> o) {
    Space sp = Decoder::space_in(p);
    int n = bytes_of(p.back());
    Op a = o[0], s = o[1];
    vector<Op> ss = s.k == VEC ? s.v : vector<Op>{s};
    int count = ss.size();
    if (a.is_symbol && sp == GENERIC) sp = a.sym_space;
    return [=](Warp &w, u32 m) {
        u64 ad[32];
        addresses(w, a, ad);
        u64 r[8][32];
        for (int j = 0; j < count; j++) rd(w, ss[j], r[j]);
        u8 *q[32];
        pointers(w, m, sp, ad, n * count, q);
        if (RACES && sp == GLOBAL) races(w, m, q, n * count, true);
        for (int i = 0; SHARED_RACES && i < 32; i++)
            if (m >> i & 1) shared_race(w, q[i], n * count, true);
        for (int j = 0; j < count; j++)
            if (n == 4) {
                for (int i = 0; i < 32; i++)
                    if (m >> i & 1) memcpy(q[i] + j * 4, &r[j][i], 4);
            } else if (n == 2) {
                for (int i = 0; i < 32; i++)
                    if (m >> i & 1) memcpy(q[i] + j * 2, &r[j][i], 2);
            } else
                for (int i = 0; i < 32; i++)
                    if (m >> i & 1) memcpy(q[i] + j * n, &r[j][i], n);
    };
}
static std::mutex atomics;
static Fn atomic_op(const vector<string> &p, vector<Op> o, const string &text, bool reduce) {
    Space sp = Decoder::space_in(p);
    string t = p.back(), op;
    static const std::set<string> ops = {"add", "min",  "max", "and", "or",
                                         "xor", "exch", "cas", "inc", "dec"};
    for (auto &x : p)
        if (ops.count(x)) op = x;
    bool two = false;
    for (auto &x : p)
        if (x == "v2" || x == "v4" || x == "v8") two = true;
    if (two || op.empty()) die("atomic: " + text);
    int n = bytes_of(t), fk = float_kind(t);
    bool pk = packed(t);
    Op d = reduce ? Op{} : o[0], a = o[reduce ? 0 : 1], b = o[reduce ? 1 : 2], c = op == "cas" ? o[3] : Op{};
    if (a.is_symbol && sp == GENERIC) sp = a.sym_space;
    bool sign = t[0] == 's';
    return [=](Warp &w, u32 m) {
        std::lock_guard l(atomics);
        u64 ad[32], x[32], y[32], old[32] = {};
        addresses(w, a, ad);
        rd(w, b, x);
        if (op == "cas") rd(w, c, y);
        for (int i = 0; i < 32; i++)
            if (m >> i & 1) {
                u8 *q = address(w, i, sp, ad[i], n);
                u64 v = 0;
                memcpy(&v, q, n);
                old[i] = v;
                u64 r = v;
                if (fk >= 0 && op != "exch" && op != "cas") {
                    auto one = [&](u64 vb, u64 xb) -> u64 {
                        double u, s;
                        if (fk == 0) {
                            u = std::bit_cast<float>((u32)vb);
                            s = std::bit_cast<float>((u32)xb);
                        } else if (fk == 1) {
                            u = std::bit_cast<double>(vb);
                            s = std::bit_cast<double>(xb);
                        } else if (fk == 2) {
                            u = h2f(vb);
                            s = h2f(xb);
                        } else {
                            u = bf2f(vb);
                            s = bf2f(xb);
                        }
                        double z = op == "add" ? u + s : op == "min" ? std::fmin(u, s) : std::fmax(u, s);
                        if (fk == 1) return std::bit_cast<u64>(z);
                        float f = (float)z;
                        return fk == 0 ? std::bit_cast<u32>(f) : fk == 2 ? f2h(f) : f2bf(f);
                    };
                    r = pk ? one(v & 0xffff, x[i] & 0xffff) | one(v >> 16, (x[i] >> 16) & 0xffff) << 16
                           : one(v, x[i]);
                } else if (op == "add") r = v + x[i];
                else if (op == "and") r = v & x[i];
                else if (op == "or") r = v | x[i];
                else if (op == "xor") r = v ^ x[i];
                else if (op == "exch") r = x[i];
                else if (op == "cas") {
                    u64 mask = n == 8 ? ~0ull : (1ull << (8 * n)) - 1;
                    r = (v & mask) == (x[i] & mask) ? y[i] : v;
                } else if (op == "min" || op == "max") {
                    bool less;
                    if (sign) {
                        s64 s = n == 4 ? (s64)(s32)v : (s64)v, u = n == 4 ? (s64)(s32)x[i] : (s64)x[i];
                        less = s < u;
                    } else {
                        u64 s = n == 4 ? (u32)v : v, u = n == 4 ? (u32)x[i] : x[i];
                        less = s < u;
                    }
                    r = (op == "min") == less ? v : x[i];
                } else die("atomic: " + text);
                memcpy(q, &r, n);
            }
        wr(w, d, old, m);
    };
}
