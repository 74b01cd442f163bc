// The device's memory is the host's, counted and checked; and the number types that C++ lacks.
#pragma once
#include <cuda.h>
#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <shared_mutex>
#include <string>
#include <thread>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>
#include <sys/mman.h>
#include <unistd.h>

using std::string;
using std::vector;
typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t s8;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;

// What the environment says; README.md tells the names.
static long env_num(const char *n, long d) {
    const char *s = getenv(n);
    return s ? strtol(s, 0, 10) : d;
}
static const int SM = env_num("STAND_IN_SM", 80);
static const bool COUNT = env_num("STAND_IN_COUNT", 0);
static const bool RANDOM_TIMES = env_num("STAND_IN_RANDOM_TIMES", 0);
static const u64 TOTAL = (u64)env_num("STAND_IN_MIB", 81920) << 20;
static const int THREADS = env_num("STAND_IN_THREADS", 2);
static const bool RACES = env_num("STAND_IN_RACES", 0);
static const bool SHARED_RACES = env_num("STAND_IN_SHARED_RACES", 0);
// 1: the last block and warp first; 2: warps by chance, as `SEED` says.
static const int ORDER = env_num("STAND_IN_ORDER", 0);
static const int SEED = env_num("STAND_IN_SEED", 0);
static const bool LATE = env_num("STAND_IN_LATE", 0);
static const bool TRACE = env_num("STAND_IN_TRACE", 0);
// How many GPUs there are; an access of one's memory by another's kernel is illegal.
static const int DEVICES = std::min<long>(env_num("STAND_IN_DEVICES", 1), 8);
// Which memory is filled with no numbers before use: 1 the device's, 2 shared, 4 registers, 8 local.
static const int POISON = env_num("STAND_IN_POISON", 15);

[[noreturn]] static void die(const string &what) {
    fprintf(stderr, "stand-in: %s\n", what.c_str());
    fflush(stderr);
    _exit(97);
}

// The device whose work this thread does: that of its context, and within work that of the stream.
static thread_local int device = 0;
struct Allocation {
    u64 size;
    int device;
};
static std::shared_mutex mem_lock;
static std::map<u64, Allocation> allocations; // by their start
static u64 in_use[8] = {}, peak[8] = {};
static std::atomic<u64> epoch{0};
// A range of this thread's device that is known to be allocated, as long as nothing was allocated or
// freed since.
struct Range {
    u64 lo = 0, hi = 0, epoch = ~0ull;
};
// The allocation that an address is in, or null.
static const std::pair<const u64, Allocation> *found_at(u64 a) {
    auto it = allocations.upper_bound(a);
    if (it == allocations.begin()) return nullptr;
    --it;
    return a < it->first + it->second.size ? &*it : nullptr;
}
static bool in_allocation(u64 a, u64 n, Range &cache) {
    if (cache.epoch == epoch.load(std::memory_order_relaxed) && a >= cache.lo && a + n <= cache.hi)
        return true;
    std::shared_lock l(mem_lock);
    auto at = found_at(a);
    if (!at || at->second.device != device || a + n > at->first + at->second.size) return false;
    cache = {at->first, at->first + at->second.size, epoch.load()};
    return true;
}
// What is wrong with an address that is not in an allocation of this thread's device.
static string illegal(u64 a) {
    std::shared_lock l(mem_lock);
    auto at = found_at(a);
    char t[80];
    snprintf(t, 80, "illegal address %llx", (unsigned long long)a);
    if (!at || at->second.device == device) return t;
    return t + (" of device " + std::to_string(at->second.device) + " on device " + std::to_string(device));
}

static void trace(char sign, u64 n, int of) {
    fprintf(stderr, "stand-in: %c %.1f MiB, in use %.1f MiB of device %d\n", sign, n / 1048576.,
            in_use[of] / 1048576., of);
}
static CUresult allocate(CUdeviceptr *p, size_t n) {
    std::unique_lock l(mem_lock);
    if (n == 0) return CUDA_ERROR_INVALID_VALUE;
    if (in_use[device] + n > TOTAL) return CUDA_ERROR_OUT_OF_MEMORY;
    void *m = mmap(nullptr, n + 4096, COUNT ? PROT_NONE : PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (m == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
    // All bits set is no number in any float type: what nobody wrote shows.
    if (!COUNT && (POISON & 1)) memset(m, 0xff, n);
    allocations[(u64)m] = {n, device};
    in_use[device] += n;
    peak[device] = std::max(peak[device], in_use[device]);
    if (TRACE) trace('+', n, device);
    epoch++;
    *p = (CUdeviceptr)m;
    return CUDA_SUCCESS;
}
static CUresult release(CUdeviceptr p) {
    std::unique_lock l(mem_lock);
    auto it = allocations.find(p);
    if (it == allocations.end()) return CUDA_ERROR_INVALID_VALUE;
    auto [size, of] = it->second;
    in_use[of] -= size;
    if (TRACE) trace('-', size, of);
    munmap((void *)it->first, size + 4096);
    allocations.erase(it);
    epoch++;
    return CUDA_SUCCESS;
}

static inline float bf2f(u16 h) { return std::bit_cast<float>((u32)h << 16); }
static inline u16 f2bf(float f) {
    u32 x = std::bit_cast<u32>(f);
    if ((x & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return (x + 0x7fff + ((x >> 16) & 1)) >> 16;
}
static inline float h2f(u16 h) { return (float)std::bit_cast<_Float16>(h); }
static inline u16 f2h(float f) { return std::bit_cast<u16>((_Float16)f); }
