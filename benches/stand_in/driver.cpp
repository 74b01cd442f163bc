// A stand-in for libcuda.so, as far as burn calls it: kernels are interpreted, all streams are one.
// README.md tells what for.
#include "late.h"
#include "run.h"

static thread_local CUcontext context = nullptr;
static std::mutex modules_lock;
static vector<Module *> modules;
static std::atomic<u64> launches{0};
static void write_report() {
    if (const char *f = getenv("STAND_IN_REPORT")) {
        std::lock_guard l(modules_lock);
        FILE *o = fopen(f, "w");
        if (!o) return;
        for (auto m : modules)
            for (auto &k : m->kernels)
                fprintf(o, "%.3f s\t%llu runs\t%llu instructions\t%s\n", k.second->seconds,
                        (unsigned long long)k.second->runs.load(),
                        (unsigned long long)k.second->instructions.load(), k.first.c_str());
        fclose(o);
    }
}
// burn's thread goes on launching while the program ends: nothing here is taken down, but summed up.
extern "C" __attribute__((visibility("hidden"))) int __cxa_atexit(void (*)(void *), void *, void *) {
    return 0;
}
__attribute__((destructor)) static void summary() {
    if (!launches) return;
    fprintf(stderr, "stand-in: %llu launches, %zu modules, peak", (unsigned long long)launches.load(),
            modules.size());
    for (int i = 0; i < DEVICES; i++) fprintf(stderr, "%s %.1f", i ? "," : "", peak[i] / 1048576.);
    fprintf(stderr, " MiB\n");
    write_report();
}
// Contexts and streams are numbers that tell their device.
static const u64 CONTEXTS = 0x1000, STREAMS = 0x2000;
static int device_of(CUstream s) { return (u64)s < STREAMS ? device : (u64)s % 8; }
#include "cublas.h"
struct Link {
    string ptx;
};
struct Event {
    std::chrono::steady_clock::time_point t;
    u64 number = 0; // of the work with which it comes
};

#pragma GCC visibility push(default)
extern "C" {
CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *v) {
    *v = env_num("STAND_IN_DRIVER", 13050);
    return CUDA_SUCCESS;
}
CUresult cuDeviceGetCount(int *n) {
    *n = DEVICES;
    return CUDA_SUCCESS;
}
CUresult cuDeviceGet(CUdevice *d, int i) {
    if (i >= DEVICES) return CUDA_ERROR_INVALID_DEVICE;
    *d = i;
    return CUDA_SUCCESS;
}
CUresult cuDeviceGetName(char *n, int len, CUdevice) {
    snprintf(n, len, "stand-in sm_%d", SM);
    return CUDA_SUCCESS;
}
CUresult cuDeviceGetPCIBusId(char *n, int len, CUdevice d) {
    snprintf(n, len, "0000:%02x:00.0", d);
    return CUDA_SUCCESS;
}
CUresult cuDeviceGetUuid(CUuuid *u, CUdevice d) {
    memset(u, 1 + d, sizeof *u);
    return CUDA_SUCCESS;
}
CUresult cuDeviceTotalMem(size_t *n, CUdevice) {
    *n = TOTAL;
    return CUDA_SUCCESS;
}
CUresult cuMemGetInfo(size_t *f, size_t *t) {
    *f = TOTAL - in_use[device];
    *t = TOTAL;
    return CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int *v, CUdevice_attribute a, CUdevice) {
    switch (a) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *v = SM / 10; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *v = SM % 10; break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *v = 32; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
        *v = SM >= 90 ? 232448 : SM == 80 ? 166912 : 101376;
        break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: *v = 49152; break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *v = 1024; break;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X:
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y: *v = 1024; break;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z: *v = 64; break;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X: *v = 2147483647; break;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y:
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z: *v = 65535; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *v = env_num("STAND_IN_SMS", SM >= 90 ? 132 : 108); break;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: *v = 40 << 20; break;
    case CU_DEVICE_ATTRIBUTE_INTEGRATED: *v = 0; break;
    case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED: *v = 1; break;
    default: fprintf(stderr, "stand-in: attribute %d\n", a); *v = 0;
    }
    return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext *c, CUdevice d) {
    *c = (CUcontext)(CONTEXTS + d);
    return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRelease(CUdevice) { return CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext c) {
    context = c;
    device = c ? (u64)c - CONTEXTS : 0;
    return CUDA_SUCCESS;
}
CUresult cuCtxGetCurrent(CUcontext *c) {
    *c = context;
    return CUDA_SUCCESS;
}
CUresult cuCtxSynchronize() {
    catch_up();
    return CUDA_SUCCESS;
}
CUresult cuCtxGetStreamPriorityRange(int *a, int *b) {
    *a = 0;
    *b = 0;
    return CUDA_SUCCESS;
}
CUresult cuStreamCreate(CUstream *s, unsigned) {
    static std::atomic<u64> n{STREAMS};
    *s = (CUstream)((n += 8) + device);
    return CUDA_SUCCESS;
}
CUresult cuStreamCreateWithPriority(CUstream *s, unsigned f, int) { return cuStreamCreate(s, f); }
CUresult cuStreamDestroy(CUstream) { return CUDA_SUCCESS; }
CUresult cuStreamSynchronize(CUstream) { return cuCtxSynchronize(); }
CUresult cuStreamWaitEvent(CUstream, CUevent, unsigned) { return CUDA_SUCCESS; }
CUresult cuEventCreate(CUevent *e, unsigned) {
    *e = (CUevent) new Event;
    return CUDA_SUCCESS;
}
CUresult cuEventDestroy(CUevent e) {
    put_off(device, [=] { delete (Event *)e; });
    return CUDA_SUCCESS;
}
CUresult cuEventRecord(CUevent e, CUstream) {
    auto event = (Event *)e;
    event->number = put_off(device, [=] { event->t = std::chrono::steady_clock::now(); });
    return CUDA_SUCCESS;
}
CUresult cuEventSynchronize(CUevent e) {
    catch_up(((Event *)e)->number);
    return CUDA_SUCCESS;
}
CUresult cuEventQuery(CUevent e) { return cuEventSynchronize(e); }
CUresult cuEventElapsedTime(float *ms, CUevent a, CUevent b) {
    if (RANDOM_TIMES) {
        static std::mutex l;
        static std::mt19937 g(SEED);
        std::lock_guard q(l);
        *ms = 0.01f + (g() % 10000) * 1e-3f;
        return CUDA_SUCCESS;
    }
    catch_up(((Event *)b)->number);
    *ms = std::chrono::duration<float, std::milli>(((Event *)b)->t - ((Event *)a)->t).count();
    return CUDA_SUCCESS;
}
#undef cuEventElapsedTime
CUresult cuEventElapsedTime(float *ms, CUevent a, CUevent b) { return cuEventElapsedTime_v2(ms, a, b); }
CUresult cuMemAlloc(CUdeviceptr *p, size_t n) { return allocate(p, n); }
CUresult cuMemAllocAsync(CUdeviceptr *p, size_t n, CUstream s) {
    if (device_of(s) != device) die("memory of a stream of another device");
    return allocate(p, n);
}
CUresult cuMemFree(CUdeviceptr p) {
    catch_up();
    return release(p);
}
CUresult cuMemFreeAsync(CUdeviceptr p, CUstream) {
    put_off(device, [=] { release(p); });
    return CUDA_SUCCESS;
}
CUresult cuMemAllocHost(void **p, size_t n) {
    *p = aligned_alloc(4096, (n + 4095) / 4096 * 4096);
    std::lock_guard l(late.lock);
    late.pinned[(u64)*p] = n;
    return *p ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}
CUresult cuMemFreeHost(void *p) {
    catch_up();
    std::lock_guard l(late.lock);
    late.pinned.erase((u64)p);
    free(p);
    return CUDA_SUCCESS;
}
static bool covered(u64 p, size_t n) {
    Range r;
    return n == 0 || in_allocation(p, n, r);
}
CUresult cuMemcpyHtoDAsync(CUdeviceptr d, const void *s, size_t n, CUstream on) {
    // Memory that is not pinned may change from here on.
    string kept = LATE && !is_pinned(s) ? string((const char *)s, n) : "";
    put_off(device_of(on), [=, kept = std::move(kept)] {
        if (!covered(d, n)) die("copy to an " + illegal(d));
        if (!COUNT) memcpy((void *)d, kept.empty() ? s : kept.data(), n);
    });
    return CUDA_SUCCESS;
}
CUresult cuMemcpyDtoHAsync(void *d, CUdeviceptr s, size_t n, CUstream on) {
    // What is read before it is there is no number.
    if (LATE) memset(d, 0xff, n);
    put_off(device_of(on), [=] {
        if (!covered(s, n)) die("copy from an " + illegal(s));
        if (COUNT) memset(d, 0, n);
        else memcpy(d, (void *)s, n);
    });
    if (!is_pinned(d)) catch_up();
    return CUDA_SUCCESS;
}
CUresult cuMemcpyDtoDAsync(CUdeviceptr d, CUdeviceptr s, size_t n, CUstream on) {
    put_off(device_of(on), [=] {
        if (!covered(s, n) || !covered(d, n)) die("copy of an " + illegal(covered(s, n) ? d : s));
        if (!COUNT) memmove((void *)d, (void *)s, n);
    });
    return CUDA_SUCCESS;
}
static void copy_2d(const CUDA_MEMCPY2D *c) {
    for (size_t y = 0; y < c->Height; y++) {
        u64 s = c->srcMemoryType == CU_MEMORYTYPE_HOST ? (u64)c->srcHost : c->srcDevice,
            d = c->dstMemoryType == CU_MEMORYTYPE_HOST ? (u64)c->dstHost : c->dstDevice;
        s += (y + c->srcY) * c->srcPitch + c->srcXInBytes;
        d += (y + c->dstY) * c->dstPitch + c->dstXInBytes;
        if (c->srcMemoryType != CU_MEMORYTYPE_HOST && !covered(s, c->WidthInBytes))
            die("2D copy from an " + illegal(s));
        if (c->dstMemoryType != CU_MEMORYTYPE_HOST && !covered(d, c->WidthInBytes))
            die("2D copy to an " + illegal(d));
        if (!COUNT) memcpy((void *)d, (void *)s, c->WidthInBytes);
        else if (c->dstMemoryType == CU_MEMORYTYPE_HOST) memset((void *)d, 0, c->WidthInBytes);
    }
}
CUresult cuMemcpy2DAsync(const CUDA_MEMCPY2D *c, CUstream on) {
    auto line = (u8 *)c->dstHost + c->dstY * c->dstPitch + c->dstXInBytes;
    for (size_t y = 0; LATE && c->dstMemoryType == CU_MEMORYTYPE_HOST && y < c->Height; y++)
        memset(line + y * c->dstPitch, 0xff, c->WidthInBytes);
    put_off(device_of(on), [copy = *c] { copy_2d(&copy); });
    auto waits = [](CUmemorytype type, const void *p) { return type == CU_MEMORYTYPE_HOST && !is_pinned(p); };
    if (waits(c->srcMemoryType, c->srcHost) || waits(c->dstMemoryType, c->dstHost)) catch_up();
    return CUDA_SUCCESS;
}
CUresult cuLinkCreate(unsigned, CUjit_option *, void **, CUlinkState *s) {
    *s = (CUlinkState) new Link;
    return CUDA_SUCCESS;
}
CUresult cuLinkAddData(CUlinkState s, CUjitInputType, void *d, size_t n, const char *, unsigned,
                       CUjit_option *, void **) {
    ((Link *)s)->ptx = string((char *)d, strnlen((char *)d, n));
    return CUDA_SUCCESS;
}
CUresult cuLinkComplete(CUlinkState s, void **d, size_t *n) {
    auto &p = ((Link *)s)->ptx;
    *d = (void *)p.c_str();
    *n = p.size() + 1;
    return CUDA_SUCCESS;
}
CUresult cuLinkDestroy(CUlinkState s) {
    delete (Link *)s;
    return CUDA_SUCCESS;
}
CUresult cuModuleLoadData(CUmodule *m, const void *d) {
    Module *x;
    static const char *keep = getenv("STAND_IN_KEEP");
    if (keep) {
        static std::atomic<int> kept = 0;
        std::ofstream(string(keep) + "/" + std::to_string(kept++) + ".ptx") << (const char *)d;
    }
    if (COUNT) {
        x = new Module;
    } else x = load_module((const char *)d);
    {
        std::lock_guard l(modules_lock);
        modules.push_back(x);
    }
    *m = (CUmodule)x;
    return CUDA_SUCCESS;
}
CUresult cuModuleLoadDataEx(CUmodule *m, const void *d, unsigned, CUjit_option *, void **) {
    return cuModuleLoadData(m, d);
}
CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction *f, CUmodule m, const char *n) {
    auto x = (Module *)m;
    if (COUNT) {
        std::lock_guard l(modules_lock);
        auto &k = x->kernels[n];
        k = std::make_unique<Kernel>();
        *f = (CUfunction)k.get();
        return CUDA_SUCCESS;
    }
    auto it = x->kernels.find(n);
    if (it == x->kernels.end()) return CUDA_ERROR_NOT_FOUND;
    *f = (CUfunction)it->second.get();
    return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute a, int v) {
    int most = 0;
    cuDeviceGetAttribute(&most, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 0);
    if (a == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES && v > most) return CUDA_ERROR_INVALID_VALUE;
    return CUDA_SUCCESS;
}
CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                        unsigned bz, unsigned sh, CUstream on, void **args, void **) {
    launches++;
    if (!gx || !gy || !gz || gy > 65535 || gz > 65535 || bx * by * bz > 1024) return CUDA_ERROR_INVALID_VALUE;
    if (COUNT) {
        ((Kernel *)f)->runs++;
        return CUDA_SUCCESS;
    }
    const string &name = ((Kernel *)f)->name;
    if (((Kernel *)f)->device != device_of(on)) die(name + " on a stream of another device");
    // burn's probes of the device's peak: gigabytes that no result depends on.
    if (name.find("throughput") != string::npos || name.find("prime_buffer") != string::npos)
        return CUDA_SUCCESS;
    static const vector<string> refused =
        split(getenv("STAND_IN_REFUSE") ? getenv("STAND_IN_REFUSE") : "", ',');
    for (auto &part : refused)
        if (!part.empty() && name.find(part) != string::npos) return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
    // The host may change its arguments from here on.
    vector<string> kept;
    for (size_t i = 0; auto &param : ((Kernel *)f)->params) kept.emplace_back((char *)args[i++], param.size);
    put_off(device_of(on), [=, kept = std::move(kept)]() mutable {
        vector<void *> at;
        for (auto &each : kept) at.push_back(each.data());
        launch(*(Kernel *)f, gx, gy, gz, bx, by, bz, sh, at.data());
    });
    return CUDA_SUCCESS;
}
CUresult cuTensorMapEncodeTiled(CUtensorMap *m, CUtensorMapDataType type, cuuint32_t rank, void *p,
                                const cuuint64_t *dims, const cuuint64_t *strides, const cuuint32_t *box,
                                const cuuint32_t *steps, CUtensorMapInterleave il, CUtensorMapSwizzle sw,
                                CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill) {
    static const int bytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
    if ((unsigned)type > 12 || rank < 1 || rank > 5 || il != CU_TENSOR_MAP_INTERLEAVE_NONE || (u64)p % 16)
        return CUDA_ERROR_INVALID_VALUE;
    TensorMap t = {};
    t.address = (u64)p;
    t.rank = rank;
    t.bytes = bytes[type];
    t.swizzle = sw;
    t.nan = fill;
    for (unsigned i = 0; i < rank; i++) {
        if (!dims[i] || dims[i] > (1ull << 32) || !box[i] || box[i] > 256 || !steps[i] || steps[i] > 8)
            return CUDA_ERROR_INVALID_VALUE;
        t.dims[i] = dims[i];
        t.box[i] = box[i];
        t.steps[i] = steps[i];
        if (i) {
            if (strides[i - 1] % 16 || strides[i - 1] >= (1ull << 40)) return CUDA_ERROR_INVALID_VALUE;
            t.strides[i - 1] = strides[i - 1];
        }
    }
    unsigned inner = box[0] * t.bytes;
    if (inner % 16 || (sw == CU_TENSOR_MAP_SWIZZLE_32B && inner > 32) ||
        (sw == CU_TENSOR_MAP_SWIZZLE_64B && inner > 64) || (sw == CU_TENSOR_MAP_SWIZZLE_128B && inner > 128))
        return CUDA_ERROR_INVALID_VALUE;
    memcpy(m, &t, sizeof t);
    return CUDA_SUCCESS;
}
// NVRTC asks for tables of its own, and does without.
CUresult cuGetExportTable(const void **t, const CUuuid *) {
    *t = nullptr;
    return CUDA_ERROR_NOT_FOUND;
}
// Of NVML, what benches/gpu.py asks: other programs' memory is not known here.
int nvmlInit_v2() { return 0; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *, void **d) {
    *d = nullptr;
    return 0;
}
int nvmlDeviceGetMemoryInfo(void *, unsigned long long *m) {
    m[0] = TOTAL;
    m[1] = TOTAL;
    m[2] = 0;
    return 0;
}
CUresult cuGetErrorName(CUresult e, const char **s) {
    *s = e == CUDA_ERROR_OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR";
    return CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult e, const char **s) {
    *s = e == CUDA_ERROR_OUT_OF_MEMORY ? "out of memory" : "an error";
    return CUDA_SUCCESS;
}
}
