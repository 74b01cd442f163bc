// What runs: kernels, blocks, warps and their registers. An instruction works on the 32 lanes of a
// warp at once, under a mask; a register holds its 32 values side by side.
#pragma once
#include "memory.h"

enum Kind { REG, PRED, IMM, SPEC, VEC, ADDR, SINK };
enum Space { GENERIC, GLOBAL, SHARED, LOCAL, PARAM, CONST };
struct Op {
    Kind k = SINK;
    int w = 0;   // bytes of a register
    u32 off = 0; // in the register file
    u64 imm = 0; // immediate, or offset of an address
    int spec = 0;
    bool neg = false; // !p
    bool has_base = false;
    u32 boff = 0;
    int bw = 0; // base register of an address
    bool is_symbol = false;
    Space sym_space = GENERIC;
    bool is_param = false;
    vector<Op> v;
};

struct Block;
struct Group {
    int pc;
    u32 mask;
    int bar;
    bool yielded = false;
};
struct Warp {
    u8 *regs;
    Block *block;
    int index; // in the block
    u32 alive;
    u32 cc = 0;
    vector<Group> groups;
    vector<u8> local;
    u32 local_size;
    u64 local_base(int lane) { return (u64)local.data() + (u64)lane * local_size; }
    u32 tid[3][32];
};
struct Module;
struct Kernel;
struct Barrier {
    u32 arrived = 0;
    u32 expected = 0;
};
struct MBar {
    s32 count, pending;
    s64 tx;
    u32 phase;
};
// Which warps wrote and read a byte of shared memory after so many barriers.
struct Touched {
    u64 barriers = 0;
    u32 writers = 0, readers = 0;
};
struct Block {
    const Kernel *kernel;
    u64 launch, index; // which launch, and which block of it
    u32 ctaid[3], nctaid[3], ntid[3];
    u8 *shared;
    u32 shared_size;
    const u8 *params;
    u32 param_size;
    vector<Warp> warps;
    Barrier bars[16];
    std::unordered_map<u32, MBar> mbars;
    vector<Touched> touched;
    u64 barriers = 0; // passed, of all blocks that ran in this one's place
    Range cache;
    u64 count = 0;
};
using Fn = std::function<void(Warp &, u32)>;
enum What { NORMAL, BRA, BAR, WARP_BAR, EXIT, YIELD };
static const int OF_WARP = 16; // where lanes wait for their warp; 0 to 15 are the block's barriers
struct Inst {
    What what = NORMAL;
    Fn run;
    int target = -1;
    int guard = -1;
    bool guard_neg = false;
    int bar = 0;
    int bar_count = 0;
    bool arrive_only = false;
    Op bar_op, count_op;
    bool dynamic_bar = false;
    std::shared_ptr<string> text;
};
struct Param {
    string name;
    u32 off, size;
};
struct Kernel {
    string name;
    int device = ::device; // on which its module was loaded
    vector<Inst> code;
    vector<Param> params;
    u32 param_size = 0;
    u32 reg_bytes = 0;
    u32 static_shared = 0;
    u32 local_size = 0;
    std::atomic<u64> runs{0}, instructions{0};
    double seconds = 0;
};
struct Module {
    string text;
    std::map<string, std::unique_ptr<Kernel>> kernels;
};

template <class T> static inline void rd(Warp &w, const Op &o, T *out) {
    switch (o.k) {
    case REG: {
        const u8 *p = w.regs + o.off;
        switch (o.w) {
        case 2: {
            auto q = (const u16 *)p;
            for (int i = 0; i < 32; i++) out[i] = (T)q[i];
        } break;
        case 4: {
            auto q = (const u32 *)p;
            for (int i = 0; i < 32; i++) out[i] = (T)q[i];
        } break;
        default: {
            auto q = (const u64 *)p;
            for (int i = 0; i < 32; i++) out[i] = (T)q[i];
        } break;
        }
    } break;
    case IMM:
        for (int i = 0; i < 32; i++) out[i] = (T)o.imm;
        break;
    case SPEC: {
        Block &b = *w.block;
        for (int i = 0; i < 32; i++) {
            u64 x = 0;
            switch (o.spec) {
            case 0:
            case 1:
            case 2: x = w.tid[o.spec][i]; break;
            case 3:
            case 4:
            case 5: x = b.ntid[o.spec - 3]; break;
            case 6:
            case 7:
            case 8: x = b.ctaid[o.spec - 6]; break;
            case 9:
            case 10:
            case 11: x = b.nctaid[o.spec - 9]; break;
            case 12: x = i; break;
            case 13: x = w.index; break;
            case 14: x = 1u << i; break;          // lanemask_eq
            case 15: x = (1u << i) - 1; break;    // lt
            case 16: x = (2u << i) - 1; break;    // le
            case 17: x = ~((2u << i) - 1); break; // gt
            case 18: x = ~((1u << i) - 1); break; // ge
            case 19: x = b.shared_size; break;
            case 20: x = std::chrono::steady_clock::now().time_since_epoch().count(); break;
            case 21: x = 0; break;
            case 22: x = 1; break;
            }
            out[i] = (T)x;
        }
    } break;
    default: die("operand cannot be read");
    }
}
// Signed sources of smaller registers are given by the caller's type.
template <class T> static inline void wr(Warp &w, const Op &o, const T *v, u32 m) {
    if (o.k == SINK) return;
    if (o.k != REG) die("operand cannot be written");
    u8 *p = w.regs + o.off;
    auto put = [&](auto *q) {
        using Q = std::remove_reference_t<decltype(*q)>;
        if (m == ~0u)
            for (int i = 0; i < 32; i++) q[i] = (Q)v[i];
        else
            for (int i = 0; i < 32; i++)
                if (m >> i & 1) q[i] = (Q)v[i];
    };
    switch (o.w) {
    case 2: put((u16 *)p); break;
    case 4: put((u32 *)p); break;
    default: put((u64 *)p);
    }
}
static inline u32 rdp(Warp &w, const Op &o) {
    if (o.k == IMM) return o.imm ? ~0u : 0;
    if (o.k != PRED) die("not a predicate");
    u32 x = *(u32 *)(w.regs + o.off);
    return o.neg ? ~x : x;
}
static inline void wrp(Warp &w, const Op &o, u32 x, u32 m) {
    if (o.k == SINK) return;
    if (o.k != PRED) die("not a predicate to write");
    u32 &d = *(u32 *)(w.regs + o.off);
    d = (d & ~m) | (x & m);
}
// Floats of a register's bits.
template <class Bits, class T> static inline void rd_bits(Warp &w, const Op &o, T *out) {
    Bits b[32];
    rd(w, o, b);
    memcpy(out, b, sizeof b);
}
template <class Bits, class T> static inline void wr_bits(Warp &w, const Op &o, const T *v, u32 m) {
    Bits b[32];
    memcpy(b, v, sizeof b);
    wr(w, o, b, m);
}
static inline void rdf(Warp &w, const Op &o, float *out) { rd_bits<u32>(w, o, out); }
static inline void wrf(Warp &w, const Op &o, const float *v, u32 m) { wr_bits<u32>(w, o, v, m); }
static inline void rdd(Warp &w, const Op &o, double *out) { rd_bits<u64>(w, o, out); }
static inline void wrd(Warp &w, const Op &o, const double *v, u32 m) { wr_bits<u64>(w, o, v, m); }

static thread_local const Inst *current_inst = nullptr;
static thread_local const Kernel *current_kernel = nullptr;
[[noreturn]] static void fault(const string &what) {
    string t = what;
    if (current_kernel) t += "\n  kernel " + current_kernel->name;
    if (current_inst && current_inst->text) t += "\n  at " + *current_inst->text;
    die(t);
}

static inline u8 *address(Warp &w, int lane, Space s, u64 a, u32 n) {
    Block &b = *w.block;
    switch (s) {
    case SHARED:
        if (a % n && n <= 16)
            fault("misaligned shared access at " + std::to_string(a) + " of " + std::to_string(n) + " bytes");
        if (a + n > b.shared_size)
            fault("shared access at " + std::to_string(a) + " of " + std::to_string(b.shared_size));
        return b.shared + a;
    case LOCAL:
        if (a + n > w.local_size) fault("local access out of bounds");
        return (u8 *)w.local_base(lane) + a;
    case PARAM:
    case CONST:
        if (s == PARAM && a < 1u << 20) {
            if (a + n > b.param_size) fault("parameter out of bounds");
            return (u8 *)b.params + a;
        }
        return (u8 *)a;
    case GENERIC:
        if (a >= (u64)b.shared && a + n <= (u64)b.shared + b.shared_size) return (u8 *)a;
        if (w.local_size && a >= (u64)w.local.data() && a + n <= (u64)w.local.data() + w.local.size())
            return (u8 *)a;
        if (a >= (u64)b.params && a + n <= (u64)b.params + b.param_size) return (u8 *)a;
        [[fallthrough]];
    default:
        if (a % n && n <= 16) {
            char t[80];
            snprintf(t, 80, "misaligned access of %u bytes at %llx", n, (unsigned long long)a);
            fault(t);
        }
        if (!in_allocation(a, n, b.cache)) {
            char t[80];
            snprintf(t, 80, ", %u bytes (lane %d, block %u %u %u)", n, lane, b.ctaid[0], b.ctaid[1], b.ctaid[2]);
            fault(illegal(a) + t);
        }
        return (u8 *)a;
    }
}
// Ends the program where a warp touches shared memory that another wrote, or writes what another
// read, with no barrier between. One that some warps pass counts for all.
static void shared_race(Warp &w, const u8 *q, u32 n, bool write) {
    Block &b = *w.block;
    if (q < b.shared || q + n > b.shared + b.shared_size) return;
    b.touched.resize(b.shared_size);
    u32 own = 1u << w.index;
    for (u32 i = 0; i < n; i++) {
        Touched &t = b.touched[q - b.shared + i];
        if (t.barriers != b.barriers) t = {b.barriers};
        if ((t.writers | (write ? t.readers : 0)) & ~own)
            fault("warp " + std::to_string(w.index) + (write ? " writes" : " reads") + " shared memory that another " +
                  (t.writers & ~own ? "wrote" : "read") + ", and no barrier is between");
        (write ? t.writers : t.readers) |= own;
    }
}
// As `address`, for one access that is looked at.
static inline u8 *touch(Warp &w, int lane, Space s, u64 a, u32 n, bool write) {
    u8 *q = address(w, lane, s, a, n);
    if (SHARED_RACES) shared_race(w, q, n, write);
    return q;
}
static inline void addresses(Warp &w, const Op &o, u64 *out) {
    if (o.has_base) {
        Op r;
        r.k = REG;
        r.w = o.bw;
        r.off = o.boff;
        rd(w, r, out);
        for (int i = 0; i < 32; i++) out[i] += o.imm;
        if (o.bw == 4)
            for (int i = 0; i < 32; i++) out[i] = (u32)out[i];
    } else
        for (int i = 0; i < 32; i++) out[i] = o.imm;
}
