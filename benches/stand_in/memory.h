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
// Which memory is filled with no numbers before use: 1 the device's, 2 shared, 4 registers, 8 local.
static const int POISON = env_num("STAND_IN_POISON", 15);

[[noreturn]] static void die(const string &what) {
    fprintf(stderr, "stand-in: %s\n", what.c_str());
    fflush(stderr);
    _exit(97);
}

static std::shared_mutex mem_lock;
static std::map<u64, u64> allocations; // start -> size
static u64 in_use = 0, peak = 0;
static std::atomic<u64> epoch{0};
// A range that is known to be allocated, as long as nothing was allocated or freed since.
struct Range {
    u64 lo = 0, hi = 0, epoch = ~0ull;
};
static bool in_allocation(u64 a, u64 n, Range &cache) {
    if (cache.epoch == epoch.load(std::memory_order_relaxed) && a >= cache.lo && a + n <= cache.hi)
        return true;
    std::shared_lock l(mem_lock);
    auto it = allocations.upper_bound(a);
    if (it == allocations.begin()) return false;
    --it;
    if (a + n > it->first + it->second) return false;
    cache = {it->first, it->first + it->second, epoch.load()};
    return true;
}

static CUresult allocate(CUdeviceptr *p, size_t n) {
    std::unique_lock l(mem_lock);
    if (n == 0) return CUDA_ERROR_INVALID_VALUE;
    if (in_use + n > TOTAL) return CUDA_ERROR_OUT_OF_MEMORY;
    void *m = mmap(nullptr, n + 4096, COUNT ? PROT_NONE : PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (m == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
    // All bits set is no number in any float type: what nobody wrote shows.
    if (!COUNT && (POISON & 1)) memset(m, 0xff, n);
    allocations[(u64)m] = n;
    in_use += n;
    peak = std::max(peak, in_use);
    if (TRACE) fprintf(stderr, "stand-in: + %.1f MiB, in use %.1f MiB\n", n / 1048576., in_use / 1048576.);
    epoch++;
    *p = (CUdeviceptr)m;
    return CUDA_SUCCESS;
}
static CUresult release(CUdeviceptr p) {
    std::unique_lock l(mem_lock);
    auto it = allocations.find(p);
    if (it == allocations.end()) return CUDA_ERROR_INVALID_VALUE;
    in_use -= it->second;
    if (TRACE)
        fprintf(stderr, "stand-in: - %.1f MiB, in use %.1f MiB\n", it->second / 1048576., in_use / 1048576.);
    munmap((void *)it->first, it->second + 4096);
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
