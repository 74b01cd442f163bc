// Runs a kernel: blocks on threads of the host, warps in turn until they wait for one another.
#pragma once
#include "module.h"

// Lets a warp's lanes go on where all of them wait for one another.
static void settle_warp(Warp &w) {
    u32 waiting = 0;
    for (auto &g : w.groups)
        if (g.bar == OF_WARP) waiting |= g.mask;
    if (waiting != w.alive) return;
    for (auto &g : w.groups)
        if (g.bar == OF_WARP) g.bar = -1;
}
static thread_local std::mt19937 chance(SEED);
static void run_warp(Warp &w) { // until all its groups wait or are done
    Block &b = *w.block;
    const Kernel &k = *b.kernel;
    auto &gs = w.groups;
    for (;;) {
        int best = -1;
        for (size_t i = 0; i < gs.size(); i++)
            if (gs[i].bar < 0 && !gs[i].yielded && (best < 0 || gs[i].pc < gs[best].pc)) best = i;
        if (best < 0) {
            for (auto &g : gs) g.yielded = false;
            return;
        }
        // merge others at the same place
        for (size_t i = 0; i < gs.size(); i++)
            if ((int)i != best && gs[i].bar < 0 && !gs[i].yielded && gs[i].pc == gs[best].pc) {
                gs[best].mask |= gs[i].mask;
                gs.erase(gs.begin() + i);
                if ((int)i < best) best--;
                i--;
            }
        int next = INT32_MAX; // where another group waits
        for (size_t i = 0; i < gs.size(); i++)
            if ((int)i != best && gs[i].bar < 0 && !gs[i].yielded) next = std::min(next, gs[i].pc);
        int pc = gs[best].pc;
        u32 mask = gs[best].mask;
        for (;;) {
            if (pc >= next && next != INT32_MAX) {
                gs[best].pc = pc;
                break;
            }
            const Inst &in = k.code[pc];
            b.count++;
            if (ORDER == 2 && chance() % 64 == 0) {
                gs[best].pc = pc;
                return;
            }
            u32 m = mask;
            if (in.guard >= 0) {
                u32 g = *(u32 *)(w.regs + in.guard);
                m &= in.guard_neg ? ~g : g;
            }
            current_inst = &in;
            if (in.what == NORMAL) {
                if (m) in.run(w, m);
                pc++;
                continue;
            }
            if (in.what == YIELD) {
                if (m) in.run(w, m);
                pc++;
                gs[best].pc = pc;
                gs[best].yielded = true;
                break;
            }
            if (in.what == BRA) {
                if (m == mask) {
                    pc = in.target;
                    if (next != INT32_MAX) {
                        gs[best].pc = pc;
                        break;
                    }
                    continue;
                }
                if (!m) {
                    pc++;
                    continue;
                }
                gs[best].mask = mask & ~m;
                gs[best].pc = pc + 1;
                gs.push_back({in.target, m, -1, false});
                break;
            }
            if (in.what == EXIT) {
                w.alive &= ~m;
                if (m == mask) gs.erase(gs.begin() + best);
                else {
                    gs[best].mask = mask & ~m;
                    gs[best].pc = pc + 1;
                }
                settle_warp(w);
                break;
            }
            if (in.what == WARP_BAR) { // of all lanes: burn's kernels name no fewer
                gs[best].pc = pc + 1;
                gs[best].bar = OF_WARP;
                settle_warp(w);
                break;
            }
            if (in.what == BAR) {
                if (m != mask) fault("barrier under a guard that differs");
                int id = in.bar;
                if (in.dynamic_bar) {
                    u32 x[32];
                    rd(w, in.bar_op, x);
                    id = x[__builtin_ctz(m)];
                }
                u32 n = 0;
                if (in.count_op.k != SINK) {
                    u32 x[32];
                    rd(w, in.count_op, x);
                    n = x[__builtin_ctz(m)];
                }
                b.bars[id].arrived += __builtin_popcount(m);
                b.bars[id].expected = n;
                gs[best].pc = pc + 1;
                if (!in.arrive_only) gs[best].bar = id;
                break;
            }
        }
    }
}
static void run_block(Block &b) {
    vector<Warp *> order;
    for (auto &w : b.warps) order.push_back(&w);
    if (ORDER == 1) std::reverse(order.begin(), order.end());
    for (u64 round = 0;; round++) {
        if (round > 20000000) fault("threads wait for ever");
        bool left = false;
        if (ORDER == 2) std::shuffle(order.begin(), order.end(), chance);
        for (Warp *w : order) {
            bool ready = false;
            for (auto &g : w->groups)
                if (g.bar < 0) ready = true;
            if (ready) run_warp(*w);
        }
        u32 alive = 0;
        bool running = false;
        for (auto &w : b.warps) {
            alive += __builtin_popcount(w.alive);
            for (auto &g : w.groups) {
                left = true;
                if (g.bar < 0) running = true;
            }
        }
        if (!left) return;
        bool released = false;
        for (int id = 0; id < 16; id++) {
            auto &x = b.bars[id];
            if (!x.arrived) continue;
            u32 need = x.expected ? x.expected : alive;
            if (x.arrived >= need) {
                released = true;
                b.barriers++;
                x.arrived = 0;
                for (auto &w : b.warps)
                    for (auto &g : w.groups)
                        if (g.bar == id) g.bar = -1;
            }
        }
        if (!released && !running) fault("threads wait at a barrier for ever");
    }
}

static void launch(Kernel &k, u32 gx, u32 gy, u32 gz, u32 bx, u32 by, u32 bz, u32 dyn, void **args) {
    vector<u8> params(k.param_size + 64);
    for (size_t i = 0; i < k.params.size(); i++)
        memcpy(params.data() + k.params[i].off, args[i], k.params[i].size);
    u64 blocks = (u64)gx * gy * gz;
    static std::atomic<u64> numbers{0};
    const u64 number = numbers++;
    std::atomic<u64> next{0}, count{0};
    u32 threads = bx * by * bz, nw = (threads + 31) / 32;
    auto start = std::chrono::steady_clock::now();
    auto work = [&, on = device] {
        static thread_local vector<u8> regs, shared_store;
        current_kernel = &k;
        device = on;
        size_t need = (size_t)k.reg_bytes * nw + 64;
        if (regs.size() < need) regs.resize(need);
        u8 *base = (u8 *)(((u64)regs.data() + 63) & ~63ull);
        u32 sh = k.static_shared + dyn;
        if (shared_store.size() < sh + 2048) shared_store.resize(sh + 2048);
        u8 *shared = (u8 *)(((u64)shared_store.data() + 1023) & ~1023ull);
        Block b;
        b.kernel = &k;
        b.launch = number;
        b.shared = shared;
        b.shared_size = sh;
        b.params = params.data();
        b.param_size = params.size();
        b.ntid[0] = bx;
        b.ntid[1] = by;
        b.ntid[2] = bz;
        b.nctaid[0] = gx;
        b.nctaid[1] = gy;
        b.nctaid[2] = gz;
        b.warps.resize(nw);
        for (u32 i = 0; i < nw; i++) {
            Warp &w = b.warps[i];
            w.block = &b;
            w.index = i;
            w.regs = base + (size_t)i * k.reg_bytes;
            w.local_size = k.local_size;
            w.local.resize(k.local_size * 32);
            for (u32 l = 0; l < 32; l++) {
                u32 t = i * 32 + l;
                w.tid[0][l] = t % bx;
                w.tid[1][l] = t / bx % by;
                w.tid[2][l] = t / bx / by;
            }
        }
        for (;;) {
            u64 n = next++;
            if (n >= blocks) break;
            if (ORDER) n = blocks - 1 - n;
            b.index = n;
            b.ctaid[0] = n % gx;
            b.ctaid[1] = n / gx % gy;
            b.ctaid[2] = n / gx / gy;
            memset(shared, POISON & 2 ? 0xff : 0, sh);
            for (auto &x : b.bars) x = {};
            b.mbars.clear();
            b.barriers++;
            memset(base, POISON & 4 ? 0xff : 0, (size_t)k.reg_bytes * nw);
            for (u32 i = 0; i < nw; i++) {
                Warp &w = b.warps[i];
                std::fill(w.local.begin(), w.local.end(), POISON & 8 ? 0xff : 0);
                u32 live = std::min(32u, threads - i * 32);
                w.alive = live == 32 ? ~0u : (1u << live) - 1;
                w.groups.clear();
                w.groups.push_back({0, w.alive, -1, false});
            }
            run_block(b);
        }
        count += b.count;
        current_kernel = nullptr;
    };
    if (blocks > 1 && THREADS > 1) {
        vector<std::thread> ts;
        int n = std::min<u64>(THREADS, blocks);
        for (int i = 1; i < n; i++) ts.emplace_back(work);
        work();
        for (auto &t : ts) t.join();
    } else work();
    k.runs++;
    k.instructions += count;
    k.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}
