#!/usr/bin/env python3
"""Checks the stand-in's arithmetic against NumPy: kernels compiled by NVRTC, run by `libcuda.so.1`.

    benches/stand_in/run.sh python3 benches/stand_in/check.py

A wrong instruction here would pass for an error of burn's."""
import ctypes
import os
import subprocess
import sys

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import gpu_machine as machine

cuda = ctypes.CDLL("libcuda.so.1")
nvrtc, _ = machine.nvrtc_library(machine.candidates(), machine.driver())
random = np.random.default_rng(0)
failed = []


def ok(code, what):
    if code != 0:
        sys.exit(f"error: {what} gave {code}")


def compile_ptx(source, arch):
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), None, 0, None, None)
    options = [f"--gpu-architecture={arch}".encode(), f"--include-path={os.environ['CUDA_PATH']}/include".encode()]
    code = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    if code != 0:
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        sys.exit(log.value.decode())
    nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetPTX(program, ptx)
    return ptx


class Buffer:
    def __init__(self, array):
        self.array, self.pointer = np.ascontiguousarray(array), ctypes.c_uint64()
        self.size = ctypes.c_size_t(self.array.nbytes)
        ok(cuda.cuMemAlloc_v2(ctypes.byref(self.pointer), self.size), "cuMemAlloc")
        data = self.array.ctypes.data_as(ctypes.c_void_p)
        ok(cuda.cuMemcpyHtoDAsync_v2(self.pointer, data, self.size, None), "cuMemcpyHtoDAsync")

    def read(self):
        out = np.empty_like(self.array)
        data = out.ctypes.data_as(ctypes.c_void_p)
        ok(cuda.cuMemcpyDtoHAsync_v2(data, self.pointer, self.size, None), "cuMemcpyDtoHAsync")
        return out


def run(source, name, grid, block, arguments, arch="sm_80"):
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    ok(cuda.cuModuleLoadData(ctypes.byref(module), compile_ptx(source, arch)), "cuModuleLoadData")
    ok(cuda.cuModuleGetFunction(ctypes.byref(function), module, name.encode()), "cuModuleGetFunction")
    values = [a.pointer if isinstance(a, Buffer) else a for a in arguments]
    pointers = [ctypes.cast(ctypes.pointer(value), ctypes.c_void_p) for value in values]
    pointers = (ctypes.c_void_p * len(values))(*pointers)
    ok(cuda.cuLaunchKernel(function, *grid, *block, 0, None, pointers, None), "cuLaunchKernel")


def compare(name, ours, theirs, limit):
    apart = float(np.max(np.abs(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64))))
    good = apart <= limit
    print(f"{name:<24}{apart:>10.1e}{limit:>10.0e}  {'ok' if good else 'FAILED'}")
    if not good:
        failed.append(name)


def bf16(x):
    """Rounded to bf16, to nearest, ties to even; as f32."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


def tiles():
    """Shared memory, barriers, guards at the edges."""
    source = """
extern "C" __global__ void product(const float *a, const float *b, float *c, int n) {
    __shared__ float s[16][16], t[16][16];
    int x = threadIdx.x, y = threadIdx.y, row = blockIdx.y * 16 + y, column = blockIdx.x * 16 + x;
    float sum = 0;
    for (int k = 0; k < n; k += 16) {
        s[y][x] = row < n && k + x < n ? a[row * n + k + x] : 0;
        t[y][x] = column < n && k + y < n ? b[(k + y) * n + column] : 0;
        __syncthreads();
        for (int i = 0; i < 16; i++) sum += s[y][i] * t[i][x];
        __syncthreads();
    }
    if (row < n && column < n) c[row * n + column] = sum;
}"""
    n = 45
    a, b = random.standard_normal((2, n, n), dtype=np.float32)
    c = Buffer(np.zeros((n, n), np.float32))
    run(source, "product", (3, 3, 1), (16, 16, 1), [Buffer(a), Buffer(b), c, ctypes.c_int(n)])
    compare("tiles", c.read(), a.astype(np.float64) @ b, 1e-5)


def functions():
    """Elementary functions, the long ways of sine and cosine among them; rounding; half types."""
    body = """
        sinf(x * 1000), cosf(x * 100000), expf(x), logf(fabsf(x)), powf(fabsf(x), 1.7f), tanhf(x), erff(x),
        rsqrtf(fabsf(x)), __bfloat162float(__float2bfloat16(x)), __half2float(__float2half(x)), floorf(x * 10),
        rintf(x * 10), (float)(int)(x * 10), x / 3.f, fmodf(x * 10, 3.f),
        __low2float(__hmul2(__floats2bfloat162_rn(x, y), __floats2bfloat162_rn(x, y))), (float)(i * 7 / 3 % 5),
        (float)__clz(i), (float)__popc(i), (float)((-i - 1) >> 1), __int_as_float(__float_as_int(x) ^ 0x80000000)"""
    source = f"""
#include <cuda_fp16.h>
#include <cuda_bf16.h>
extern "C" __global__ void functions(const float *a, float *out, int n) {{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float x = a[i], y = 2 * x;
    float all[] = {{{body}}};
    for (int j = 0; j < 21; j++) out[i * 21 + j] = all[j];
}}"""
    n = 100
    x = random.standard_normal(n, dtype=np.float32)
    out = Buffer(np.zeros((n, 21), np.float32))
    run(source, "functions", (4, 1, 1), (32, 1, 1), [Buffer(x), out, ctypes.c_int(n)])
    d, ten, i = x.astype(np.float64), x * np.float32(10), np.arange(n)
    erf = np.vectorize(__import__("math").erf)
    half = bf16(x).astype(np.float32)
    wanted = {
        "sin": np.sin((x * np.float32(1000)).astype(np.float64)),
        "cos, far away": np.cos((x * np.float32(100000)).astype(np.float64)),
        "exp": np.exp(d), "log": np.log(abs(d)), "pow": abs(d) ** 1.7, "tanh": np.tanh(d), "erf": erf(d),
        "rsqrt": 1 / np.sqrt(abs(d)), "to bf16": half, "to f16": x.astype(np.float16), "floor": np.floor(ten),
        "rint": np.rint(ten), "to int": np.trunc(ten), "divide": d / 3, "fmod": np.fmod(ten, np.float32(3)),
        "bf16 product": bf16(half * half), "integers": i * 7 // 3 % 5,
        "leading zeros": [32 - int(k).bit_length() for k in i], "ones": [bin(k).count("1") for k in i],
        "shift": (-i - 1) >> 1, "bits": -x,
    }
    for j, (name, values) in enumerate(wanted.items()):
        exact = j >= 8 and name != "divide"
        compare(name, out.read()[:, j], values, 0 if exact else 2e-6)


def warps():
    """Shuffles, votes, divergence, atomics."""
    source = """
extern "C" __global__ void sum(const float *a, float *out, int *odd) {
    int i = threadIdx.x;
    float v = a[blockIdx.x * blockDim.x + i];
    __shared__ float s[32];
    if (i % 2) { if (__popc(__ballot_sync(0xaaaaaaaau, v > 0)) > 16) v = 0; }
    atomicAdd(odd, __popc(__ballot_sync(~0u, i % 3 == 0)) * (i % 32 == 0));
    for (int k = 16; k; k >>= 1) v += __shfl_down_sync(~0u, v, k);
    if (i % 32 == 0) s[i / 32] = v;
    __syncthreads();
    if (i < 32) {
        v = i < blockDim.x / 32 ? s[i] : 0;
        for (int k = 16; k; k >>= 1) v += __shfl_xor_sync(~0u, v, k);
        if (i == 0) atomicAdd(out, v);
    }
}"""
    x = random.standard_normal(1024, dtype=np.float32)
    out, odd = Buffer(np.zeros(1, np.float32)), Buffer(np.zeros(1, np.int32))
    run(source, "sum", (4, 1, 1), (256, 1, 1), [Buffer(x), out, odd])
    compare("warps", out.read(), x.astype(np.float64).sum(), 2e-5)
    compare("votes", odd.read(), 4 * sum(i % 3 == 0 for i in range(256)), 0)


def products():
    """Tensor cores in both spellings, and ldmatrix."""
    source = """
#include <mma.h>
#include <cuda_bf16.h>
using namespace nvcuda;
extern "C" __global__ void fragments(const __nv_bfloat16 *a, const __nv_bfloat16 *b, float *c) {
    wmma::fragment<wmma::matrix_a, 16, 16, 16, __nv_bfloat16, wmma::row_major> x;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, __nv_bfloat16, wmma::col_major> y;
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> z;
    wmma::fill_fragment(z, 0.f);
    for (int k = 0; k < 32; k += 16) {
        wmma::load_matrix_sync(x, a + k, 32);
        wmma::load_matrix_sync(y, b + k, 32);
        wmma::mma_sync(z, x, y, z);
    }
    wmma::store_matrix_sync(c, z, 16, wmma::mem_row_major);
}
extern "C" __global__ void lanes(const unsigned short *a, const unsigned short *b, float *c) {
    __shared__ unsigned short s[256];
    int l = threadIdx.x, g = l / 4, t = l % 4;
    float d[4] = {0, 0, 0, 0};
    for (int k = 0; k < 32; k += 16) {
        for (int i = l; i < 256; i += 32) s[i] = a[i / 16 * 32 + k + i % 16];
        __syncwarp();
        unsigned r[4], at = __cvta_generic_to_shared(s + l % 16 * 16 + l / 16 * 8);
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at));
        unsigned p = *(unsigned *)(b + g * 32 + k + t * 2), q = *(unsigned *)(b + g * 32 + k + t * 2 + 8);
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]), "r"(p), "r"(q));
        __syncwarp();
    }
    c[g * 8 + t * 2] = d[0];
    c[g * 8 + t * 2 + 1] = d[1];
    c[(g + 8) * 8 + t * 2] = d[2];
    c[(g + 8) * 8 + t * 2 + 1] = d[3];
}"""
    a, b = bf16(random.standard_normal((2, 16, 32)))
    halves = [Buffer((x.view(np.uint32) >> 16).astype(np.uint16)) for x in (a, b)]
    wanted = a.astype(np.float64) @ b.T
    c = Buffer(np.zeros((16, 16), np.float32))
    run(source, "fragments", (1, 1, 1), (32, 1, 1), [*halves, c])
    compare("wmma", c.read(), wanted, 2e-6)
    c = Buffer(np.zeros((16, 8), np.float32))
    run(source, "lanes", (1, 1, 1), (32, 1, 1), [*halves, c])
    compare("ldmatrix and mma", c.read(), wanted[:, :8], 2e-6)


def blas():
    """cuBLAS's products, whose matrices lie by columns, with lines further apart than they are long."""
    library, state = ctypes.CDLL("libcublas.so"), ctypes.c_void_p()
    ok(cuda.cuCtxSetCurrent(ctypes.c_void_p(0x1000)), "cuCtxSetCurrent")
    ok(library.cublasCreate_v2(ctypes.byref(state)), "cublasCreate")
    m, n, k, factor = 5, 7, 9, ctypes.c_float(0.5)
    half = lambda x: (x.view(np.uint32) >> 16).astype(np.uint16)
    for op_a, op_b, kept, read, written in [(0, 0, 0, 14, 14), (1, 0, 1, 14, 14), (0, 1, 0, 0, 0), (1, 1, 1, 14, 0)]:
        a, b = bf16(random.standard_normal((11, 11))), bf16(random.standard_normal((12, 12)))
        c = bf16(random.standard_normal((13, n)))
        of_a, of_b = (a[:k, :m] if op_a == 0 else a[:m, :k].T), (b[:n, :k] if op_b == 0 else b[:k, :n].T)
        factors = [Buffer(half(x) if read == 14 else x) for x in (a, b)]
        into, add = Buffer(half(c.T.copy()) if written == 14 else c.T.copy()), ctypes.c_float(kept)
        at = [ctypes.c_void_p(x.pointer.value) for x in (*factors, into)]
        sizes = [ctypes.c_int(x) for x in (m, n, k)]
        code = library.cublasGemmEx(state, op_a, op_b, *sizes, ctypes.byref(factor), at[0], read, 11, at[1], read, 12,
                                    ctypes.byref(add), at[2], written, 13, 68, -1)
        ok(code, "cublasGemmEx")
        out = into.read()
        out = (out.astype(np.uint32) << 16).view(np.float32) if written == 14 else out
        wanted = 0.5 * (of_a.T.astype(np.float64) @ of_b.T) + kept * c[:m]
        compare(f"cublasGemmEx {'NT'[op_a]}{'NT'[op_b]}", out.T[:m], wanted, 2e-2 if written == 14 else 2e-6)
        kept_as_it_was = np.array_equal(out.T[m:], c[m:])
        compare("  and nothing else", np.float32([not kept_as_it_was]), np.float32([0]), 0)


def barriers():
    """Barriers in shared memory: a warp waits for what the other writes, and for announced bytes."""
    source = """
extern "C" __global__ void handed(const float *a, float *out) {
    __shared__ float s[32];
    __shared__ alignas(8) unsigned long long bar;
    unsigned at = __cvta_generic_to_shared(&bar), i = threadIdx.x, done = 0;
    if (i == 0) asm volatile("mbarrier.init.shared.b64 [%0], 33;" :: "r"(at) : "memory");
    __syncthreads();
    if (i >= 32) {
        s[i - 32] = a[i - 32];
        if (i == 32) {
            asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], 12;" :: "r"(at) : "memory");
            asm volatile("mbarrier.complete_tx.shared::cluster.relaxed.cluster.b64 [%0], 12;" :: "r"(at) : "memory");
        }
        asm volatile("mbarrier.arrive.shared.b64 _, [%0];" :: "r"(at) : "memory");
        return;
    }
    while (!done)
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], 0; selp.u32 %0, 1, 0, p; }"
                     : "=r"(done) : "r"(at) : "memory");
    out[i] = s[31 - i];
}"""
    x = random.standard_normal(32, dtype=np.float32)
    out = Buffer(np.zeros(32, np.float32))
    run(source, "handed", (1, 1, 1), (64, 1, 1), [Buffer(x), out], arch="sm_90")
    compare("barriers", out.read(), x[::-1], 0)


def unordered():
    """A warp reads what another wrote, and no barrier is between."""
    source = """
extern "C" __global__ void unordered(int *out) {
    __shared__ volatile int s[32];
    int i = threadIdx.x;
    if (i < 32) s[i] = 0;
    __syncthreads();
    if (i < 32) s[i] = i;
    else out[blockIdx.x * 32 + i - 32] = s[i - 32];
}"""
    out = Buffer(np.zeros((16, 32), np.int32))
    run(source, "unordered", (16, 1, 1), (64, 1, 1), [out])
    return out.read()


def constant():
    """A thread writes what it then reads as if nothing wrote it."""
    source = """
extern "C" __global__ void constant(int *x) {
    x[0] = 1;
    asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(x[1]) : "l"(x) : "memory");
}"""
    x = Buffer(np.zeros(2, np.int32))
    run(source, "constant", (1, 1, 1), (1, 1, 1), [x])
    return x.read()


def early():
    """The host changes what the device still copies."""
    there, device, n = ctypes.c_void_p(), Buffer(np.zeros(1, np.int32)), ctypes.c_size_t(4)
    ok(cuda.cuMemAllocHost_v2(ctypes.byref(there), n), "cuMemAllocHost")
    host = ctypes.cast(there, ctypes.POINTER(ctypes.c_int))
    host[0] = 1
    ok(cuda.cuMemcpyHtoDAsync_v2(device.pointer, there, n, None), "cuMemcpyHtoDAsync")
    host[0] = 2
    return device.read()


def foreign():
    """A kernel of the first device writes to the last one's memory."""
    number, source = ctypes.c_int(), 'extern "C" __global__ void foreign(int *x) { x[0] = 1; }'
    ok(cuda.cuDeviceGetCount(ctypes.byref(number)), "cuDeviceGetCount")
    first, last = ctypes.c_void_p(), ctypes.c_void_p()
    ok(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(first), 0), "cuDevicePrimaryCtxRetain")
    ok(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(last), number.value - 1), "cuDevicePrimaryCtxRetain")
    ok(cuda.cuCtxSetCurrent(last), "cuCtxSetCurrent")
    x = Buffer(np.zeros(1, np.int32))
    ok(cuda.cuCtxSetCurrent(first), "cuCtxSetCurrent")
    run(source, "foreign", (1, 1, 1), (1, 1, 1), [x])
    return x.read()


# Faults that pass where nobody looks for them, and what looks.
FAULTS = {
    "STAND_IN_RACES=1": constant,
    "STAND_IN_SHARED_RACES=1": unordered,
    "STAND_IN_ORDER=1": unordered,
    "STAND_IN_ORDER=2": unordered,
    "STAND_IN_LATE=1": early,
    "STAND_IN_DEVICES=2": foreign,
}


def faults():
    """Each is found: the program ends, or comes to another result."""
    switches = {switch.split("=")[0] for switch in FAULTS}
    plain = {name: value for name, value in os.environ.items() if name not in switches}

    def result(fault, **more):
        command = [sys.executable, __file__, fault.__name__]
        done = subprocess.run(command, env=plain | more, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        return done.returncode, done.stdout

    for switch, fault in FAULTS.items():
        passed, found = result(fault), result(fault, **dict([switch.split("=")]))
        missed = np.float32([passed[0] != 0 or found == passed])
        compare(switch.removeprefix("STAND_IN_"), missed, np.float32([0]), 0)


ok(cuda.cuInit(0), "cuInit")
for fault in FAULTS.values():
    if sys.argv[1:] == [fault.__name__]:
        print(fault().tolist())
        sys.exit()
print(f"{'':<24}{'apart':>10}{'at most':>10}")
tiles()
functions()
warps()
products()
blas()
barriers()
faults()
sys.exit(f"failed: {', '.join(failed)}" if failed else 0)
