// What the multiply-add units do at best: independent chains that stay in registers. Built by bench/ceiling.py.
#if defined(__AVX512F__)
#define BYTES 64
#else
#define BYTES 32
#endif
#define CHAINS 10
typedef float vec __attribute__((vector_size(BYTES)));

// Flop of `rounds` multiply-adds of every chain, on this thread; `sink` keeps the compiler from leaving them out.
double multiply_add(long rounds, float* sink) {
    vec a[CHAINS], x, y;
    for (int i = 0; i < BYTES / 4; i++) x[i] = 0.999f, y[i] = sink[0];
    for (int c = 0; c < CHAINS; c++) a[c] = y + (float)c;
    for (long r = 0; r < rounds; r++)
#pragma GCC unroll 16
        for (int c = 0; c < CHAINS; c++) a[c] = a[c] * x + y;
    for (int c = 0; c < CHAINS; c++)
        for (int i = 0; i < BYTES / 4; i++) sink[0] += a[c][i];
    return 2.0 * CHAINS * (BYTES / 4) * rounds;
}
