// What a CPU step spends its time on: products of packed matrices, norms, attention over pages, experts. Plain C behind
// ctypes, GCC's vector types instead of intrinsics, so one source serves AVX2 and AVX-512; built once for each.
//
// Letters as in the Python: T tokens, H query heads, G key heads, D key size, E value size, K inputs, N outputs.
// Nothing is checked here: engine/kernels/native.py is the seam that does.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__AVX512F__)
constexpr int W = 16, ROWS = 12;
#else
constexpr int W = 8, ROWS = 6;
#endif
constexpr int P = 2 * W;    // columns of a panel
constexpr long CHUNK = 96;  // rows of x that stay in the second cache
typedef float vec __attribute__((vector_size(4 * W), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(4 * W), aligned(4)));
typedef uint32_t bits __attribute__((vector_size(4 * W), aligned(4)));

static inline vec load(const float* p) { return *(const vec*)p; }
static inline void store(float* p, vec v) { *(vec*)p = v; }
static inline float sum(vec v) {
    float total = 0;
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) total += v[i];
    return total;
}

// ---- products: y[T, N] = x[T, K] w^T + bias. w lies in panels [ceil(N / P)][K][P]; in a bfloat16 panel, columns j and
// j + W share 32 bits, j the low half.

template <typename T> static inline void columns(const T* panel, long k, vec& low, vec& high);
template <> inline void columns<float>(const float* panel, long k, vec& low, vec& high) {
    low = load(panel + k * P);
    high = load(panel + k * P + W);
}
template <> inline void columns<uint16_t>(const uint16_t* panel, long k, vec& low, vec& high) {
    bits pair = *(const bits*)(panel + k * P);
    low = (vec)(pair << 16);
    high = (vec)(pair & 0xffff0000u);
}

// M rows of x with one panel. U partial sums hide the latency of a multiply-add when M is small.
template <int M, int U, typename T>
static void tile(const float* const* x, const T* panel, long K, float* const* y, long width, const float* bias) {
    vec a[U][M][2];
#pragma GCC unroll 16
    for (int u = 0; u < U; u++)
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) a[u][m][0] = a[u][m][1] = vec{};
    const float* row[M];
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) row[m] = x[m];
    long k = 0;
    for (; k + U <= K; k += U)
#pragma GCC unroll 16
        for (int u = 0; u < U; u++) {
            vec low, high;
            columns<T>(panel, k + u, low, high);
#pragma GCC unroll 16
            for (int m = 0; m < M; m++) {
                float s = row[m][k + u];
                a[u][m][0] += s * low;
                a[u][m][1] += s * high;
            }
        }
    for (; k < K; k++) {
        vec low, high;
        columns<T>(panel, k, low, high);
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) {
            a[0][m][0] += row[m][k] * low;
            a[0][m][1] += row[m][k] * high;
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) {
#pragma GCC unroll 16
        for (int u = 1; u < U; u++) {
            a[0][m][0] += a[u][m][0];
            a[0][m][1] += a[u][m][1];
        }
        if (width == P) {
            store(y[m], bias ? a[0][m][0] + load(bias) : a[0][m][0]);
            store(y[m] + W, bias ? a[0][m][1] + load(bias + W) : a[0][m][1]);
        } else {
            float both[P];
            store(both, a[0][m][0]);
            store(both + W, a[0][m][1]);
            for (long j = 0; j < width; j++) y[m][j] = both[j] + (bias ? bias[j] : 0.0f);
        }
    }
}

template <typename T, int M>
static void tile_of(long rows, const float* const* x, const T* panel, long K, float* const* y, long width,
                    const float* bias) {
    if (rows == M) return tile<M, M == 1 ? 4 : M == 2 ? 2 : 1, T>(x, panel, K, y, width, bias);
    if constexpr (M > 1) tile_of<T, M - 1>(rows, x, panel, K, y, width, bias);
}

// `count` rows, wherever they lie (at x(i), to y(i)), with one panel.
template <typename T, typename X, typename Y>
static void panel_product(long count, X x, const T* panel, long K, Y y, long width, const float* bias) {
    const float* from[ROWS];
    float* to[ROWS];
    long tiles = (count + ROWS - 1) / ROWS, first = 0;
    for (long t = 0; t < tiles; t++) {
        long rows = count / tiles + (t < count % tiles);
        for (long m = 0; m < rows; m++) from[m] = x(first + m), to[m] = y(first + m);
        tile_of<T, ROWS>(rows, from, panel, K, to, width, bias);
        first += rows;
    }
}

template <typename T>
static void product(const float* x, const T* w, const float* bias, float* y, long num, long K, long N) {
    const long panels = (N + P - 1) / P;
    for (long first = 0; first < num; first += CHUNK) {
        long count = std::min(num - first, CHUNK);
#pragma omp parallel for schedule(static)
        for (long p = 0; p < panels; p++)
            panel_product<T>(
                count, [&](long i) { return x + (first + i) * K; }, w + p * K * P, K,
                [&](long i) { return y + (first + i) * N + p * P; }, std::min(N - p * P, (long)P),
                bias ? bias + p * P : nullptr);
    }
}

// ---- exp, to 2 ulp: 2^n times a polynomial

static inline vec exponential(vec x) {
    const vec low = vec{} - 87.0f;
    x = x < low ? low : x;
    vec t = x * 1.44269504f;
    ivec n = __builtin_convertvector(t + (t < vec{} ? vec{} - 0.5f : vec{} + 0.5f), ivec);
    vec f = __builtin_convertvector(n, vec);
    vec r = x - f * 0.693359375f + f * 2.12194440e-4f;
    vec p = vec{} + 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    vec e = p * r * r + r + 1.0f;
    return e * (vec)((n + 127) << 23);
}

// ---- attention over pages. A token's queries see positions first .. last of its row; the row's table says which pages
// those are, beginning with logical page `page0`. One unit of work: HEADS_AT_ONCE heads of a key head, of one token.

constexpr long HEADS_AT_ONCE = 4, KEYS_AT_ONCE = 64;

struct Attention {
    const float* q;       // [T, H, D]
    const float* keys;    // slab: page stride below, then [page_tokens, G, D]
    const float* values;  // the same with E
    float* out;           // [T, H, E]
    const int64_t* tables;  // [R, max_pages]
    const int32_t *row, *first, *last;  // [T]
    const int64_t* page0;               // [R]
    int64_t T, H, G, D, E, key_row, value_row, page_stride, max_pages, page_tokens;
    float scale;
};

template <int M> static inline void dots(const float* const* q, const float* key, long D, float* to, long stride) {
    vec a[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) a[m] = vec{};
    long d = 0;
    for (; d + W <= D; d += W) {
        vec k = load(key + d);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) a[m] += load(q[m] + d) * k;
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
        float total = sum(a[m]);
        for (long i = d; i < D; i++) total += q[m][i] * key[i];
        to[m * stride] = total;
    }
}

template <int M> static void unit(const Attention& a, long t, long head, float* scratch) {
    const long group = head / (a.H / a.G), row = a.row[t];
    const int64_t* table = a.tables + row * a.max_pages - a.page0[row];
    const float* q[M];
    float* out[M];
    float best[M], total[M];
    for (int m = 0; m < M; m++) {
        q[m] = a.q + (t * a.H + head + m) * a.D;
        out[m] = a.out + (t * a.H + head + m) * a.E;
        best[m] = -INFINITY, total[m] = 0;
        memset(out[m], 0, a.E * sizeof(float));
    }
    for (long position = a.first[t]; position <= a.last[t];) {
        long page = position / a.page_tokens, offset = position % a.page_tokens;
        long count = std::min({a.page_tokens - offset, a.last[t] - position + 1, KEYS_AT_ONCE});
        const float* keys = a.keys + table[page] * a.page_stride + offset * a.key_row + group * a.D;
        const float* values = a.values + table[page] * a.page_stride + offset * a.value_row + group * a.E;
        for (long j = 0; j < count; j++) dots<M>(q, keys + j * a.key_row, a.D, scratch + j, KEYS_AT_ONCE);
        for (int m = 0; m < M; m++) {
            float* s = scratch + m * KEYS_AT_ONCE;
            float most = best[m];
            for (long j = 0; j < count; j++) most = std::max(most, s[j] *= a.scale);
            for (long j = count; j < KEYS_AT_ONCE; j++) s[j] = -INFINITY;
            vec gathered{};
            for (long j = 0; j < KEYS_AT_ONCE; j += W) {
                vec e = exponential(load(s + j) - most);
                for (long i = std::max(0L, count - j); i < W; i++) e[i] = 0;
                store(s + j, e);
                gathered += e;
            }
            float fade = best[m] == -INFINITY ? 0.0f : std::exp(best[m] - most);
            total[m] = total[m] * fade + sum(gathered);
            best[m] = most;
            if (fade != 1.0f)
                for (long e = 0; e < a.E; e++) out[m][e] *= fade;
        }
        long e = 0;
        for (; e + W <= a.E; e += W) {
            vec acc[M];
#pragma GCC unroll 8
            for (int m = 0; m < M; m++) acc[m] = load(out[m] + e);
            for (long j = 0; j < count; j++) {
                vec v = load(values + j * a.value_row + e);
#pragma GCC unroll 8
                for (int m = 0; m < M; m++) acc[m] += scratch[m * KEYS_AT_ONCE + j] * v;
            }
#pragma GCC unroll 8
            for (int m = 0; m < M; m++) store(out[m] + e, acc[m]);
        }
        for (; e < a.E; e++)
            for (int m = 0; m < M; m++)
                for (long j = 0; j < count; j++) out[m][e] += scratch[m * KEYS_AT_ONCE + j] * values[j * a.value_row + e];
        position += count;
    }
    for (int m = 0; m < M; m++) {
        float share = total[m] > 0 ? 1.0f / total[m] : 0.0f;  // a query that sees nothing says nothing
        for (long e = 0; e < a.E; e++) out[m][e] *= share;
    }
}

// ---- experts: SiLU(x gate) * (x up), then down, of each token's chosen ones, summed with their weights

struct Experts {
    const float* x;         // [T, D]
    const int64_t* chosen;  // [T, k]
    const float* share;     // [T, k]
    const void *up, *down;  // panels of [E][2 I, D] (gate first) and [E][D, I]
    float *middle, *parts;  // [T k, 2 I], [T k, D]
    float* out;             // [T, D]
    int64_t T, k, E, D, I, up_stride, down_stride;  // strides between experts, in elements
};

template <typename T> static void experts(const Experts& a) {
    std::vector<long> begin(a.E + 1, 0), order(a.T * a.k), hit;
    for (long i = 0; i < a.T * a.k; i++) begin[a.chosen[i] + 1]++;
    for (long e = 0; e < a.E; e++) {
        if (begin[e + 1]) hit.push_back(e);
        begin[e + 1] += begin[e];
    }
    std::vector<long> next(begin.begin(), begin.end() - 1);
    for (long i = 0; i < a.T * a.k; i++) order[next[a.chosen[i]]++] = i;
    const long up_panels = (2 * a.I + P - 1) / P, down_panels = (a.D + P - 1) / P, hits = hit.size();
#pragma omp parallel
    {
#pragma omp for schedule(dynamic, 1)
        for (long unit = 0; unit < hits * up_panels; unit++) {
            long e = hit[unit / up_panels], p = unit % up_panels, first = begin[e];
            panel_product<T>(
                begin[e + 1] - first, [&](long i) { return a.x + order[first + i] / a.k * a.D; },
                (const T*)a.up + e * a.up_stride + p * a.D * P, a.D,
                [&](long i) { return a.middle + (first + i) * 2 * a.I + p * P; }, std::min(2 * a.I - p * P, (long)P),
                nullptr);
        }
#pragma omp for schedule(static)
        for (long i = 0; i < a.T * a.k; i++) {
            float *gate = a.middle + i * 2 * a.I, *up = gate + a.I;
            long j = 0;
            for (; j + W <= a.I; j += W) {
                vec g = load(gate + j);
                store(gate + j, g / (1.0f + exponential(-g)) * load(up + j));
            }
            for (; j < a.I; j++) gate[j] = gate[j] / (1.0f + std::exp(-gate[j])) * up[j];
        }
#pragma omp for schedule(dynamic, 1)
        for (long unit = 0; unit < hits * down_panels; unit++) {
            long e = hit[unit / down_panels], p = unit % down_panels, first = begin[e];
            panel_product<T>(
                begin[e + 1] - first, [&](long i) { return a.middle + (first + i) * 2 * a.I; },
                (const T*)a.down + e * a.down_stride + p * a.I * P, a.I,
                [&](long i) { return a.parts + order[first + i] * a.D + p * P; }, std::min(a.D - p * P, (long)P),
                nullptr);
        }
#pragma omp for schedule(static)
        for (long t = 0; t < a.T; t++)
            for (long d = 0; d < a.D; d++) {
                float total = 0;
                for (long j = 0; j < a.k; j++) total += a.share[t * a.k + j] * a.parts[(t * a.k + j) * a.D + d];
                a.out[t * a.D + d] = total;
            }
    }
}

extern "C" {
int panel_columns() { return P; }

void product_float32(const float* x, const float* w, const float* bias, float* y, long T, long K, long N) {
    product<float>(x, w, bias, y, T, K, N);
}
void product_bfloat16(const float* x, const uint16_t* w, const float* bias, float* y, long T, long K, long N) {
    product<uint16_t>(x, w, bias, y, T, K, N);
}

// y = x / sqrt(mean(x^2) + eps) * weight, row by row
void rms_norm(const float* x, const float* weight, float* y, long T, long D, float eps) {
#pragma omp parallel for schedule(static) if (T * D > 65536)
    for (long t = 0; t < T; t++) {
        const float* row = x + t * D;
        vec squares{};
        long d = 0;
        for (; d + W <= D; d += W) squares += load(row + d) * load(row + d);
        float total = sum(squares);
        for (long i = d; i < D; i++) total += row[i] * row[i];
        float scale = 1.0f / std::sqrt(total / D + eps);
        for (d = 0; d + W <= D; d += W) store(y + t * D + d, load(row + d) * scale * load(weight + d));
        for (; d < D; d++) y[t * D + d] = row[d] * scale * weight[d];
    }
}

void attend(const Attention* a) {
    const long each = a->H / a->G, splits = (each + HEADS_AT_ONCE - 1) / HEADS_AT_ONCE, units = a->T * a->G * splits;
#pragma omp parallel
    {
        float scratch[HEADS_AT_ONCE * KEYS_AT_ONCE];
#pragma omp for schedule(dynamic, 1)
        for (long u = 0; u < units; u++) {
            long t = u / (a->G * splits), g = u / splits % a->G, first = u % splits * HEADS_AT_ONCE;
            long head = g * each + first;
            switch (std::min(HEADS_AT_ONCE, each - first)) {
                case 1: unit<1>(*a, t, head, scratch); break;
                case 2: unit<2>(*a, t, head, scratch); break;
                case 3: unit<3>(*a, t, head, scratch); break;
                default: unit<4>(*a, t, head, scratch);
            }
        }
    }
}

void experts_float32(const Experts* a) { experts<float>(*a); }
void experts_bfloat16(const Experts* a) { experts<uint16_t>(*a); }
}
