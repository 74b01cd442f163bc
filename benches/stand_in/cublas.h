// A stand-in for libcublas.so, as far as the program calls it: matrices of bf16 or f32, sums in f32.
#pragma once

// By the numbers of cublas_api.h and library_types.h.
enum { OP_N = 0, OP_T = 1, R_32F = 0, R_16BF = 14, COMPUTE_32F = 68, GEMM_DEFAULT = -1 };
enum { BLAS_SUCCESS = 0, BLAS_NOT_INITIALIZED = 1, BLAS_INVALID_VALUE = 7, BLAS_ARCH_MISMATCH = 8, BLAS_NOT_SUPPORTED = 15 };

// By device, the stream that its state multiplies on: what a handle points to.
static CUstream cublas_streams[8];

// Its launches, counted beside those of kernels.
static Kernel &gemm() {
    static Kernel *kernel = [] {
        auto module = new Module;
        auto &kernel = module->kernels["cublasGemmEx"] = std::make_unique<Kernel>();
        std::lock_guard l(modules_lock);
        modules.push_back(module);
        return kernel.get();
    }();
    return *kernel;
}

// Whether the columns of a matrix, `pitch` numbers apart, lie in an allocation.
static bool holds(const void *p, int rows, int columns, int pitch, int bytes) {
    Range r;
    return (u64)p % bytes == 0 && in_allocation((u64)p, ((u64)(columns - 1) * pitch + rows) * bytes, r);
}

// `op(x)` by rows, where `x` lies by columns.
static vector<float> read_matrix(const void *x, int type, int op, int rows, int columns, int pitch) {
    vector<float> out((size_t)rows * columns);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < columns; j++) {
            size_t at = op == OP_N ? (size_t)j * pitch + i : (size_t)i * pitch + j;
            out[(size_t)i * columns + j] = type == R_32F ? ((const float *)x)[at] : bf2f(((const u16 *)x)[at]);
        }
    return out;
}

// `y = factor · a·b + kept · y`: [m, k], [k, n] by rows; `y` by columns.
static void multiply(const vector<float> &a, const vector<float> &b, int m, int n, int k, float factor,
                     float kept, void *y, int type, int pitch) {
    auto some = [&](int from, int to) {
        vector<float> row(n);
        for (int i = from; i < to; i++) {
            std::fill(row.begin(), row.end(), 0.f);
            for (int l = 0; l < k; l++)
                for (int j = 0; j < n; j++) row[j] += a[(size_t)i * k + l] * b[(size_t)l * n + j];
            for (int j = 0; j < n; j++) {
                size_t at = (size_t)j * pitch + i;
                float was = kept == 0 ? 0 : type == R_32F ? ((float *)y)[at] : bf2f(((u16 *)y)[at]);
                float sum = factor * row[j] + (kept == 0 ? 0 : kept * was);
                if (type == R_32F) ((float *)y)[at] = sum;
                else ((u16 *)y)[at] = f2bf(sum);
            }
        }
    };
    vector<std::thread> threads;
    for (int t = 1; t < THREADS; t++)
        threads.emplace_back(some, (int)((s64)m * t / THREADS), (int)((s64)m * (t + 1) / THREADS));
    some(0, m / THREADS);
    for (auto &t : threads) t.join();
}

#pragma GCC visibility push(default)
extern "C" {
int cublasCreate_v2(void **handle) {
    CUcontext c;
    cuCtxGetCurrent(&c);
    if (!c || env_num("STAND_IN_CUBLAS", 1) == 0) return BLAS_NOT_INITIALIZED;
    *handle = &cublas_streams[device];
    return BLAS_SUCCESS;
}
int cublasDestroy_v2(void *) { return BLAS_SUCCESS; }
int cublasSetMathMode(void *handle, unsigned) { return handle ? BLAS_SUCCESS : BLAS_NOT_INITIALIZED; }
int cublasSetStream_v2(void *handle, CUstream s) {
    // burn's streams are none of the numbers that CUDA keeps for its own.
    if (!handle || (u64)s < STREAMS || handle != &cublas_streams[device_of(s)]) return BLAS_INVALID_VALUE;
    *(CUstream *)handle = s;
    return BLAS_SUCCESS;
}
int cublasGemmStridedBatchedEx(void *handle, int op_a, int op_b, int m, int n, int k, const void *alpha,
                               const void *a, int type_a, int lda, long long apart_a, const void *b, int type_b,
                               int ldb, long long apart_b, const void *beta, void *c, int type_c, int ldc,
                               long long apart_c, int batch, int compute, int algorithm) {
    if (!handle) return BLAS_NOT_INITIALIZED;
    if (env_num("STAND_IN_CUBLAS", 1) == 2) return BLAS_ARCH_MISMATCH;
    if ((type_a != R_16BF && type_a != R_32F) || type_b != type_a || (type_c != type_a && type_c != R_32F) ||
        compute != COMPUTE_32F || algorithm != GEMM_DEFAULT)
        return BLAS_NOT_SUPPORTED;
    bool plain_a = op_a == OP_N, plain_b = op_b == OP_N;
    if ((op_a != OP_N && op_a != OP_T) || (op_b != OP_N && op_b != OP_T) || m < 1 || n < 1 || k < 1 ||
        lda < (plain_a ? m : k) || ldb < (plain_b ? k : n) || ldc < m || batch < 1)
        return BLAS_INVALID_VALUE;
    // These two are the host's, and it may change them from here on.
    float factor = *(const float *)alpha, kept = *(const float *)beta;
    put_off(device_of(*(CUstream *)handle), [=] {
        Kernel &kernel = gemm();
        launches++, kernel.runs++;
        int bytes = type_a == R_32F ? 4 : 2, bytes_c = type_c == R_32F ? 4 : 2;
        auto start = std::chrono::steady_clock::now();
        for (int i = 0; i < batch; i++) {
            const void *at_a = (const char *)a + i * apart_a * bytes, *at_b = (const char *)b + i * apart_b * bytes;
            void *at_c = (char *)c + i * apart_c * bytes_c;
            if (!holds(at_a, plain_a ? m : k, plain_a ? k : m, lda, bytes) ||
                !holds(at_b, plain_b ? k : n, plain_b ? n : k, ldb, bytes) || !holds(at_c, m, n, ldc, bytes_c))
                die("cublasGemmEx at an illegal address, or one of another device");
            if (COUNT) continue;
            auto of_a = read_matrix(at_a, type_a, op_a, m, k, lda), of_b = read_matrix(at_b, type_b, op_b, k, n, ldb);
            multiply(of_a, of_b, m, n, k, factor, kept, at_c, type_c, ldc);
        }
        kernel.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    });
    return BLAS_SUCCESS;
}
int cublasGemmEx(void *handle, int op_a, int op_b, int m, int n, int k, const void *alpha, const void *a,
                 int type_a, int lda, const void *b, int type_b, int ldb, const void *beta, void *c, int type_c,
                 int ldc, int compute, int algorithm) {
    return cublasGemmStridedBatchedEx(handle, op_a, op_b, m, n, k, alpha, a, type_a, lda, 0, b, type_b, ldb, 0, beta,
                                      c, type_c, ldc, 0, 1, compute, algorithm);
}
}
#pragma GCC visibility pop
