// The expensive operations of a decoder layer in float32: products of packed matrices, norms, rotation, cache writes,
// attention over pages, routing, experts. The interface is plain C, called through ctypes. GCC's vector types are used
// instead of intrinsics, so that one source is built for both AVX2 and AVX-512.
//
// One call runs a whole program, because for one token a call from Python takes as long as the computation. The threads
// share the work of each operation without a barrier at its end; `wait` puts a barrier before an operation that reads
// what earlier ones have written.
//
// Letters as in the Python: T tokens, H query heads, G key heads, D key size, E value size, K inputs, N outputs.
// Arguments are not checked here; engine/kernels/program.py checks them.
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
constexpr long CHUNK = 96;  // rows of x that stay in the L2 cache
typedef float vec __attribute__((vector_size(4 * W), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(4 * W), aligned(4)));
typedef uint32_t bits __attribute__((vector_size(4 * W), aligned(4)));

static inline vec load(const float* p) { return *(const vec*)p; }
static inline void store(float* p, vec v) { *(vec*)p = v; }

// Sums over the lanes of one vector, and of four at once. In `swapped<n>(v)`, lane i is lane i ^ n of v.
template <int N> static inline vec swapped(vec v) {
    ivec lanes;
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) lanes[i] = i ^ N;
    return __builtin_shuffle(v, lanes);
}
static inline float sum(vec v) {
    if constexpr (W == 16) v += swapped<8>(v);
    v += swapped<4>(v);
    return (v[0] + v[2]) + (v[1] + v[3]);
}
static inline void sum4(const vec* v, float* to) {
    ivec odd, second;  // -1 in the lanes that come from the second of a pair
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) odd[i] = -(i & 1), second[i] = -(i >> 1 & 1);
    vec low = (odd ? v[1] : v[0]) + swapped<1>(odd ? v[0] : v[1]);
    vec high = (odd ? v[3] : v[2]) + swapped<1>(odd ? v[2] : v[3]);
    vec all = (second ? high : low) + swapped<2>(second ? low : high);
    if constexpr (W == 16) all += swapped<8>(all);
    all += swapped<4>(all);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) to[i] = all[i];
}
static inline float dot(const float* x, const float* y, long K) {
    vec total{};
    long k = 0;
    for (; k + W <= K; k += W) total += load(x + k) * load(y + k);
    float rest = 0;
    for (; k < K; k++) rest += x[k] * y[k];
    return sum(total) + rest;
}

// ---- the arguments of a call

struct Segment {  // tokens begin .. begin + T; the i-th sees positions first[i] .. last[i] of row[i]
    int64_t begin, T;
    const int64_t* tables;  // [R, max_pages]; the first is logical page page0[row]
    const int64_t* page0;   // [R]
    const int32_t *row, *first, *last;
    int64_t max_pages;
};

struct Call {
    int64_t T;
    float *x, *y, *arena;
    const float *cos, *sin;         // token t, pair i: at t * angle_row + i * angle_step
    const int64_t *page, *offset;   // [T]: where each token's entry goes
    const Segment* segments;        // whose attention is computed by this call
    float *keys, *values;           // slabs: pages of [page_tokens, G, D], page_stride apart
    int64_t angle_row, angle_step, num_segments, page_stride, page_tokens;
};

// An operand: one of these, or (>= 0) a column of the arena, which starts at column * T.
enum : int64_t { X = -1, Y = -2, NOWHERE = -3, KEYS = -4, VALUES = -5 };

static inline float* at(const Call& c, int64_t place) {
    return place == X ? c.x : place == Y ? c.y : place == NOWHERE ? nullptr : c.arena + place * c.T;
}

struct Op {
    int64_t kind, wait;
};

// ---- product: y = x w^T + bias + add, for each of H matrices. w is packed in panels [ceil(N / P)][K][P]; in a
// bfloat16 panel, columns j and j + W share 32 bits, with j in the low half.

struct Product : Op {
    int64_t x, y, add;  // `add` has the strides of y
    int64_t is_short;   // bfloat16 panels
    const void* w;
    const float* bias;
    int64_t H, K, N, x_row, x_head, y_row, y_head, w_head;  // *_row: numbers from token to token
};

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

struct Rows {  // the rows of one tile
    const char* soon;  // what to prefetch: `soon_step` bytes for each k
    long soon_step;
    const float* x[ROWS];
    float* y[ROWS];
    const float* add[ROWS];  // null, or with the strides of y
};

// Multiply M rows of x by one panel. U partial sums hide the latency of multiply-adds if M is 1. With more rows, there
// is time to prefetch the next panel; each tile fetches its share.
template <int M, int U, typename T>
static void tile(const Rows& rows, const T* panel, long K, long width, const float* bias) {
    vec a[U][M][2];
#pragma GCC unroll 16
    for (int u = 0; u < U; u++)
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) a[u][m][0] = a[u][m][1] = vec{};
    const float* row[M];
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) row[m] = rows.x[m];
    long k = 0;
    for (; k + U <= K; k += U)
#pragma GCC unroll 16
        for (int u = 0; u < U; u++) {
            vec low, high;
            columns<T>(panel, k + u, low, high);
            if (M > 1) __builtin_prefetch(rows.soon + k * rows.soon_step);
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
        vec low = a[0][m][0], high = a[0][m][1];
#pragma GCC unroll 16
        for (int u = 1; u < U; u++) low += a[u][m][0], high += a[u][m][1];
        float *y = rows.y[m], both[P];
        const float* add = rows.add[m];
        if (width == P) {
            if (bias) low += load(bias), high += load(bias + W);
            if (add) low += load(add), high += load(add + W);
            store(y, low);
            store(y + W, high);
        } else {
            store(both, low);
            store(both + W, high);
            for (long j = 0; j < width; j++) y[j] = both[j] + (bias ? bias[j] : 0.0f) + (add ? add[j] : 0.0f);
        }
    }
}

template <typename T, int M> static void tile_of(long count, const Rows& rows, const T* panel, long K, long width,
                                                 const float* bias) {
    if (count == M) return tile<M, M == 1 ? 4 : 1, T>(rows, panel, K, width, bias);
    if constexpr (M > 1) tile_of<T, M - 1>(count, rows, panel, K, width, bias);
}

// Multiply `count` rows by one panel. `place(i, rows, m)` fills in the addresses of the i-th as number m of the tile.
template <typename T, typename Place>
static void panel_product(long count, Place place, const T* panel, long K, long width, const float* bias = nullptr) {
    Rows rows{};
    long tiles = (count + ROWS - 1) / ROWS, first = 0;
    const long part = K * P * sizeof(T) / tiles;
    rows.soon_step = P * sizeof(T) / tiles;
    for (long t = 0; t < tiles; t++) {
        rows.soon = (const char*)(panel + K * P) + t * part;
        long here = count / tiles + (t < count % tiles);
        for (long m = 0; m < here; m++) place(first + m, rows, m);
        tile_of<T, ROWS>(here, rows, panel, K, width, bias);
        first += here;
    }
}

template <typename T>
static void product(const Product& a, const float* x, float* y, const float* add, long num) {
    const long panels = (a.N + P - 1) / P;
    for (long first = 0; first < num; first += CHUNK) {
        const long count = std::min(num - first, CHUNK);
#pragma omp for schedule(static) nowait
        for (long unit = 0; unit < a.H * panels; unit++) {
            const long h = unit / panels, column = unit % panels * P;
            panel_product<T>(
                count,
                [&](long i, Rows& rows, long m) {
                    const long to = (first + i) * a.y_row + h * a.y_head + column;
                    rows.x[m] = x + (first + i) * a.x_row + h * a.x_head;
                    rows.y[m] = y + to;
                    rows.add[m] = add ? add + to : nullptr;
                },
                (const T*)a.w + h * a.w_head + column * a.K, a.K, std::min(a.N - column, (long)P),
                a.bias ? a.bias + column : nullptr);
        }
    }
}

static void product(const Product& a, const Call& c) {
    auto of = a.is_short ? product<uint16_t> : product<float>;
    of(a, at(c, a.x), at(c, a.y), at(c, a.add), c.T);
}

// ---- norm: y = x / sqrt(mean(x^2) + eps) * weight

struct Norm : Op {
    int64_t x, y, D;
    const float* weight;
    float eps;
};

static inline void norm_row(const float* x, const float* weight, float* y, long D, float eps) {
    const float scale = 1.0f / std::sqrt(dot(x, x, D) / D + eps);
    long d = 0;
    for (; d + W <= D; d += W) store(y + d, load(x + d) * scale * load(weight + d));
    for (; d < D; d++) y[d] = x[d] * scale * weight[d];
}

static void norm(const Norm& a, const Call& c) {
#pragma omp for schedule(static) nowait
    for (long t = 0; t < c.T; t++) norm_row(at(c, a.x) + t * a.D, a.weight, at(c, a.y) + t * a.D, a.D, a.eps);
}

// ---- heads: copy `size` numbers of every head from x to y, which may be x itself or a slab; norm the first `normed`
// of them, and rotate `turned` of them, beginning at `turn_at`.

enum : int64_t { HALVES, PAIRS_TO_HALVES, PAIRS };  // number i is rotated with i + turned / 2, or 2 i with 2 i + 1

struct Heads : Op {
    int64_t x, y, H, size, x_row, x_head, x_at, y_row, y_head, y_at, normed, turn_at, turned, rotation;
    const float* weight;
    float eps;
};

static void turn(const float* x, float* y, long half, int64_t rotation, const float* cos, const float* sin, long step) {
    const bool pairs = rotation != HALVES;
    long i = 0;
    if (step == 1 && rotation != PAIRS) {
        ivec even, odd;
#pragma GCC unroll 16
        for (int lane = 0; lane < W; lane++) even[lane] = 2 * lane, odd[lane] = 2 * lane + 1;
        for (; i + W <= half; i += W) {
            const vec low = load(x + (pairs ? 2 * i : i)), high = load(x + (pairs ? 2 * i + W : i + half));
            const vec a = pairs ? __builtin_shuffle(low, high, even) : low;
            const vec b = pairs ? __builtin_shuffle(low, high, odd) : high;
            store(y + i, a * load(cos + i) - b * load(sin + i));
            store(y + i + half, b * load(cos + i) + a * load(sin + i));
        }
    }
    for (; i < half; i++) {
        const float a = pairs ? x[2 * i] : x[i], b = pairs ? x[2 * i + 1] : x[i + half];
        const float along = a * cos[i * step] - b * sin[i * step], across = b * cos[i * step] + a * sin[i * step];
        y[rotation == PAIRS ? 2 * i : i] = along;
        y[rotation == PAIRS ? 2 * i + 1 : i + half] = across;
    }
}

static void heads(const Heads& a, const Call& c) {
    const float* x = at(c, a.x) + a.x_at;
    float* slab = a.y == KEYS ? c.keys : a.y == VALUES ? c.values : nullptr;
    std::vector<float> row(a.size);
#pragma omp for schedule(static) nowait
    for (long unit = 0; unit < c.T * a.H; unit++) {
        const long t = unit / a.H, h = unit % a.H;
        const float* from = x + t * a.x_row + h * a.x_head;
        float* to = (slab ? slab + c.page[t] * c.page_stride + c.offset[t] * a.y_row : at(c, a.y) + t * a.y_row) +
                    h * a.y_head + a.y_at;
        memcpy(row.data(), from, a.size * sizeof(float));
        if (a.normed) norm_row(row.data(), a.weight, row.data(), a.normed, a.eps);
        memcpy(to, row.data(), a.turn_at * sizeof(float));
        turn(row.data() + a.turn_at, to + a.turn_at, a.turned / 2, a.rotation, c.cos + t * c.angle_row,
             c.sin + t * c.angle_row, c.angle_step);
        const long rest = a.turn_at + a.turned;
        memcpy(to + rest, row.data() + rest, (a.size - rest) * sizeof(float));
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

// ---- attend: softmax(scale q k^T) v of the segments' tokens, each over the positions that it sees. Queries with the
// same keys (heads of one key head, tokens of a row) are computed together: few queries of one token read the keys in
// place (`unit`); many become matrix products with packed copies of some keys at a time (`block`).

constexpr long HEADS_AT_ONCE = 4, KEYS_AT_ONCE = 64, QUERIES_OF_A_BLOCK = 96, FEWEST_OF_A_BLOCK = 64;

struct Attend : Op {
    int64_t x, y, H, G, D, E;
    int64_t shared;  // the values are the first numbers of the keys
    float scale;
};

// Compute the dot products of M queries with four keys; each query's four scores are stored from `to` on.
template <int M> static inline void dots4(const float* const* q, const float* key, long key_row, long D, float* to) {
    vec a[M][4];
#pragma GCC unroll 16
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) a[m][j] = vec{};
    long d = 0;
    for (; d + W <= D; d += W) {
        vec k[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) k[j] = load(key + j * key_row + d);
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) {
            vec x = load(q[m] + d);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) a[m][j] += x * k[j];
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) {
        float* score = to + m * KEYS_AT_ONCE;
        sum4(a[m], score);
        for (long i = d; i < D; i++)
            for (int j = 0; j < 4; j++) score[j] += q[m][i] * key[j * key_row + i];
    }
}

// out[m] += sum over `count` keys of weight[m][j] value[j], for V vectors of each value, from number e on.
template <int M, int V>
static inline void mix(const float* weight, const float* value, long value_row, long count, float* const* out, long e) {
    vec acc[M][V];
#pragma GCC unroll 16
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) acc[m][v] = load(out[m] + e + v * W);
    for (long j = 0; j < count; j++) {
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
            vec x = load(value + j * value_row + e + v * W);
#pragma GCC unroll 16
            for (int m = 0; m < M; m++) acc[m][v] += weight[m * KEYS_AT_ONCE + j] * x;
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) store(out[m] + e + v * W, acc[m][v]);
}

// Online softmax: replace scores by exp(score - best so far), and rescale the earlier sums to a new best.
static inline void soften(float* score, long count, float scale, float& best, float& total, float* out, long E) {
    const long padded = (count + W - 1) / W * W;
    for (long j = count; j < padded; j++) score[j] = -INFINITY;
    vec high = load(score) * scale;
    for (long j = 0; j < padded; j += W) {
        vec s = load(score + j) * scale;
        store(score + j, s);
        high = s > high ? s : high;
    }
    float most = best;
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) most = std::max(most, high[i]);
    if (most > best) {
        const float fade = best == -INFINITY ? 0.0f : std::exp(best - most);
        for (long e = 0; e < E; e++) out[e] *= fade;
        total *= fade, best = most;
    }
    vec gathered{};
    for (long j = 0; j < padded; j += W) {
        vec s = load(score + j), e = exponential(s - best);
        e = s == -INFINITY ? vec{} : e;
        store(score + j, e);
        gathered += e;
    }
    total += sum(gathered);
}

template <int M>
static void unit(const Attend& a, const Call& c, const Segment& s, long i, long head, float* scratch) {
    constexpr int V = W == 16 ? 4 : 2;  // vectors of each query, so that all fit into registers
    const long group = head / (a.H / a.G), row = s.row[i], t = s.begin + i, last = s.last[i];
    const long key_row = a.G * a.D, value_row = a.shared ? key_row : a.G * a.E;
    const float* slab = a.shared ? c.keys : c.values;
    const int64_t* table = s.tables + row * s.max_pages - s.page0[row];
    const float* q[M];
    float* out[M];
    float best[M], total[M];
    for (int m = 0; m < M; m++) {
        q[m] = at(c, a.x) + (t * a.H + head + m) * a.D;
        out[m] = at(c, a.y) + (t * a.H + head + m) * a.E;
        best[m] = -INFINITY, total[m] = 0;
        memset(out[m], 0, a.E * sizeof(float));
    }
    for (long position = s.first[i]; position <= last;) {
        const long page = table[position / c.page_tokens], offset = position % c.page_tokens;
        const long count = std::min({c.page_tokens - offset, last - position + 1, KEYS_AT_ONCE});
        const float* keys = c.keys + page * c.page_stride + offset * key_row + group * a.D;
        const float* values = slab + page * c.page_stride + offset * value_row + group * a.E;
        long j = 0, e = 0;
        for (; j + 4 <= count; j += 4) dots4<M>(q, keys + j * key_row, key_row, a.D, scratch + j);
        for (; j < count; j++)
            for (int m = 0; m < M; m++) scratch[m * KEYS_AT_ONCE + j] = dot(q[m], keys + j * key_row, a.D);
        for (int m = 0; m < M; m++)
            soften(scratch + m * KEYS_AT_ONCE, count, a.scale, best[m], total[m], out[m], a.E);
        for (; e + V * W <= a.E; e += V * W) mix<M, V>(scratch, values, value_row, count, out, e);
        for (; e + W <= a.E; e += W) mix<M, 1>(scratch, values, value_row, count, out, e);
        for (; e < a.E; e++)
            for (int m = 0; m < M; m++)
                for (j = 0; j < count; j++) out[m][e] += scratch[m * KEYS_AT_ONCE + j] * values[j * value_row + e];
        position += count;
    }
    for (int m = 0; m < M; m++) {
        float share = total[m] > 0 ? 1.0f / total[m] : 0.0f;  // a query without visible keys gives 0
        for (long e = 0; e < a.E; e++) out[m][e] *= share;
    }
}

// Compute tokens i .. i + num of one row, for all query heads of one key head.
static void block(const Attend& a, const Call& c, const Segment& s, long i, long num, long group) {
    const long each = a.H / a.G, rows = num * each, row = s.row[i], D = a.D, E = a.E;
    const long key_row = a.G * D, value_row = a.shared ? key_row : a.G * E;
    const long value_panels = (E + P - 1) / P;
    const float* slab = a.shared ? c.keys : c.values;
    const int64_t* table = s.tables + row * s.max_pages - s.page0[row];
    const long from = *std::min_element(s.first + i, s.first + i + num);
    const long last = *std::max_element(s.last + i, s.last + i + num);
    thread_local std::vector<float> key_panels, values, scores, best, total;  // kept: allocation is slow
    key_panels.resize(KEYS_AT_ONCE * D), values.resize(value_panels * P * KEYS_AT_ONCE);
    scores.resize(rows * KEYS_AT_ONCE), best.assign(rows, -INFINITY), total.assign(rows, 0.0f);
    auto q = [&](long r) { return at(c, a.x) + ((s.begin + i + r / each) * a.H + group * each + r % each) * D; };
    auto out = [&](long r) { return at(c, a.y) + ((s.begin + i + r / each) * a.H + group * each + r % each) * E; };
    for (long r = 0; r < rows; r++) memset(out(r), 0, E * sizeof(float));
    for (long position = from; position <= last; position += KEYS_AT_ONCE) {
        const long count = std::min(last - position + 1, KEYS_AT_ONCE);
        for (long j = 0; j < count; j++) {  // pack keys as columns and values as rows of panels
            const long page = table[(position + j) / c.page_tokens], offset = (position + j) % c.page_tokens;
            const float* key = c.keys + page * c.page_stride + offset * key_row + group * D;
            const float* value = slab + page * c.page_stride + offset * value_row + group * E;
            float* to = key_panels.data() + j / P * P * D + j % P;
            for (long d = 0; d < D; d++) to[d * P] = key[d];
            for (long p = 0; p < value_panels; p++)
                memcpy(values.data() + (p * KEYS_AT_ONCE + j) * P, value + p * P, std::min(E - p * P, (long)P) * 4);
        }
        for (long column = 0; column < count; column += P)
            panel_product<float>(
                rows,
                [&](long r, Rows& to, long m) {
                    to.x[m] = q(r), to.y[m] = scores.data() + r * KEYS_AT_ONCE + column, to.add[m] = nullptr;
                },
                key_panels.data() + column * D, D, P);
        for (long r = 0; r < rows; r++) {
            float* score = scores.data() + r * KEYS_AT_ONCE;
            const long begin = s.first[i + r / each] - position, end = s.last[i + r / each] - position + 1;
            for (long j = 0; j < std::min(begin, count); j++) score[j] = -INFINITY;
            for (long j = std::max(end, 0L); j < count; j++) score[j] = -INFINITY;
            soften(score, count, a.scale, best[r], total[r], out(r), E);
        }
        for (long p = 0; p < value_panels; p++)
            panel_product<float>(
                rows,
                [&](long r, Rows& to, long m) {
                    to.x[m] = scores.data() + r * KEYS_AT_ONCE, to.y[m] = out(r) + p * P, to.add[m] = to.y[m];
                },
                values.data() + p * KEYS_AT_ONCE * P, count, std::min(E - p * P, (long)P));
    }
    for (long r = 0; r < rows; r++) {
        const float share = total[r] > 0 ? 1.0f / total[r] : 0.0f;
        for (long e = 0; e < E; e++) out(r)[e] *= share;
    }
}

static void attend(const Attend& a, const Call& c) {
    struct Item {
        const Segment* segment;
        long i, num, head, heads;  // num 0: a unit of `heads` heads; else a block
    };
    const long each = a.H / a.G, most = std::max(1L, QUERIES_OF_A_BLOCK / each);
    std::vector<Item> items;
    for (const Segment* s = c.segments; s < c.segments + c.num_segments; s++)
        for (long i = 0, num; i < s->T; i += num) {
            for (num = 1; i + num < s->T && num < most && s->row[i + num] == s->row[i];) num++;
            const bool together = num > 1 && num * each >= FEWEST_OF_A_BLOCK;
            for (long t = i; t < (together ? i + 1 : i + num); t++)
                for (long g = 0; g < a.G; g++)
                    for (long h = 0; h < each; h += together ? each : HEADS_AT_ONCE)
                        items.push_back({s, t, together ? num : 0, g * each + h, std::min(HEADS_AT_ONCE, each - h)});
        }
    float scratch[HEADS_AT_ONCE * KEYS_AT_ONCE];
#pragma omp for schedule(dynamic, 1) nowait
    for (size_t n = 0; n < items.size(); n++) {
        const Item& item = items[n];
        if (item.num)
            block(a, c, *item.segment, item.i, item.num, item.head / each);
        else if (item.heads == 1)
            unit<1>(a, c, *item.segment, item.i, item.head, scratch);
        else if (item.heads == 2)
            unit<2>(a, c, *item.segment, item.i, item.head, scratch);
        else if (item.heads == 3)
            unit<3>(a, c, *item.segment, item.i, item.head, scratch);
        else
            unit<4>(a, c, *item.segment, item.i, item.head, scratch);
    }
}

// ---- gate: x = SiLU(x) * up, row by row

struct Gate : Op {
    int64_t x, up, I;
};

static inline void gate_row(float* x, const float* up, long I) {
    long i = 0;
    for (; i + W <= I; i += W) {
        vec g = load(x + i);
        store(x + i, g / (1.0f + exponential(-g)) * load(up + i));
    }
    for (; i < I; i++) x[i] = x[i] / (1.0f + std::exp(-x[i])) * up[i];
}

static void gate(const Gate& a, const Call& c) {
    constexpr long PIECE = 256;
    const long pieces = (a.I + PIECE - 1) / PIECE;
#pragma omp for schedule(static) nowait
    for (long unit = 0; unit < c.T * pieces; unit++) {
        const long from = unit / pieces * a.I + unit % pieces * PIECE;
        gate_row(at(c, a.x) + from, at(c, a.up) + from, std::min(PIECE, a.I - unit % pieces * PIECE));
    }
}

// ---- route: choose the k experts of each token by score, and compute their weights

struct Route : Op {
    int64_t x, chosen, share;  // logits [T, E]; int64 [T, k]; [T, k]
    int64_t E, k, groups, best_groups;
    int64_t sigmoid;      // scores are a sigmoid; else a softmax over all experts
    int64_t of_a_group;   // a group's score is the sum of its best so many
    int64_t to_one;       // normalize the shares to sum to 1
    const float* bias;    // added to the scores for choosing only
    float scale;
};

static void best_of(const std::vector<float>& score, long count, long* found) {
    std::vector<bool> taken(score.size());
    for (long n = 0; n < count; n++) {
        long best = -1;
        for (long i = 0; i < (long)score.size(); i++)
            if (!taken[i] && (best < 0 || score[i] > score[best])) best = i;
        taken[best] = true;
        found[n] = best;
    }
}

static void route(const Route& a, const Call& c) {
    const long each = a.E / a.groups;
    std::vector<float> share(a.E), score(a.E), of_group(a.groups), within(each);
    std::vector<long> found(std::max({a.k, a.best_groups, a.of_a_group}));
#pragma omp for schedule(static) nowait
    for (long t = 0; t < c.T; t++) {
        const float* x = at(c, a.x) + t * a.E;
        const float most = *std::max_element(x, x + a.E);
        float total = 0;
        for (long e = 0; e < a.E; e++) total += share[e] = a.sigmoid ? 1 / (1 + std::exp(-x[e])) : std::exp(x[e] - most);
        for (long e = 0; e < a.E; e++) {
            if (!a.sigmoid) share[e] /= total;
            score[e] = share[e] + (a.bias ? a.bias[e] : 0.0f);
        }
        if (a.best_groups < a.groups) {
            for (long g = 0; g < a.groups; g++) {
                within.assign(score.begin() + g * each, score.begin() + (g + 1) * each);
                best_of(within, a.of_a_group, found.data());
                of_group[g] = 0;
                for (long n = 0; n < a.of_a_group; n++) of_group[g] += within[found[n]];
            }
            best_of(of_group, a.best_groups, found.data());
            for (long g = 0; g < a.groups; g++)
                if (std::find(found.begin(), found.begin() + a.best_groups, g) == found.begin() + a.best_groups)
                    std::fill(score.begin() + g * each, score.begin() + (g + 1) * each, -INFINITY);
        }
        best_of(score, a.k, found.data());
        float sum = 1e-20f;
        for (long n = 0; n < a.k; n++) sum += share[found[n]];
        for (long n = 0; n < a.k; n++) {
            ((int64_t*)at(c, a.chosen))[t * a.k + n] = found[n];
            at(c, a.share)[t * a.k + n] = share[found[n]] / (a.to_one ? sum : 1.0f) * a.scale;
        }
    }
}

// ---- experts: down(SiLU(gate(x)) * up(x)) for each token's chosen experts, summed by their shares

struct Experts : Op {
    int64_t x, chosen, share, middle, parts, y, add;  // middle [T k, 2 I], parts [T k, D]
    int64_t is_short;
    const void *up, *down;  // panels of [E][2 I, D] (gate first) and [E][D, I]
    int64_t E, k, D, I, up_head, down_head;
};

struct Routing {  // the (token, choice) pairs of one call, ordered by expert
    std::vector<long> begin, order, hit;

    void sort(const int64_t* chosen, long num, long E) {
        begin.assign(E + 1, 0), order.resize(num), hit.clear();
        for (long i = 0; i < num; i++) begin[chosen[i] + 1]++;
        for (long e = 0; e < E; e++) {
            if (begin[e + 1]) hit.push_back(e);
            begin[e + 1] += begin[e];
        }
        std::vector<long> next(begin.begin(), begin.end() - 1);
        for (long i = 0; i < num; i++) order[next[chosen[i]]++] = i;
    }
};

// Multiply each chosen expert's rows by all panels of its matrix [N, K].
template <typename T, typename Place>
static void expert_products(const Routing& r, const T* w, long w_head, long N, long K, Place place) {
    const long panels = (N + P - 1) / P;
#pragma omp for schedule(dynamic, 1)
    for (long unit = 0; unit < (long)r.hit.size() * panels; unit++) {
        const long e = r.hit[unit / panels], column = unit % panels * P, end = r.begin[e + 1];
        for (long first = r.begin[e]; first < end; first += CHUNK)
            panel_product<T>(
                std::min(end - first, CHUNK),
                [&](long i, Rows& rows, long m) { place(first + i, column, rows, m); }, w + e * w_head + column * K, K,
                std::min(N - column, (long)P));
    }
}

template <typename T> static void experts(const Experts& a, const Call& c, Routing& r) {
    const float *x = at(c, a.x), *share = at(c, a.share), *add = at(c, a.add);
    float *middle = at(c, a.middle), *parts = at(c, a.parts), *y = at(c, a.y);
#pragma omp single
    r.sort((const int64_t*)at(c, a.chosen), c.T * a.k, a.E);
    expert_products<T>(r, (const T*)a.up, a.up_head, 2 * a.I, a.D, [&](long i, long column, Rows& rows, long m) {
        rows.x[m] = x + r.order[i] / a.k * a.D, rows.y[m] = middle + i * 2 * a.I + column;
    });
#pragma omp for schedule(static)
    for (long i = 0; i < c.T * a.k; i++) gate_row(middle + i * 2 * a.I, middle + (i * 2 + 1) * a.I, a.I);
    expert_products<T>(r, (const T*)a.down, a.down_head, a.D, a.I, [&](long i, long column, Rows& rows, long m) {
        rows.x[m] = middle + i * 2 * a.I, rows.y[m] = parts + r.order[i] * a.D + column;
    });
#pragma omp for schedule(static) nowait
    for (long t = 0; t < c.T; t++)
        for (long d = 0; d < a.D; d++) {
            float total = add ? add[t * a.D + d] : 0.0f;
            for (long j = 0; j < a.k; j++) total += share[t * a.k + j] * parts[(t * a.k + j) * a.D + d];
            y[t * a.D + d] = total;
        }
}

// ---- programs

enum : int64_t { PRODUCT, NORM, HEADS, ATTEND, GATE, ROUTE, EXPERTS };

static void perform(const Op* op, const Call& c, Routing& routing) {
    switch (op->kind) {
        case PRODUCT: return product(*(const Product*)op, c);
        case NORM: return norm(*(const Norm*)op, c);
        case HEADS: return heads(*(const Heads*)op, c);
        case ATTEND: return attend(*(const Attend*)op, c);
        case GATE: return gate(*(const Gate*)op, c);
        case ROUTE: return route(*(const Route*)op, c);
        case EXPERTS: {
            const Experts& a = *(const Experts*)op;
            return a.is_short ? experts<uint16_t>(a, c, routing) : experts<float>(a, c, routing);
        }
    }
}

extern "C" {
int panel_columns() { return P; }

void run(const Op* const* ops, long count, const Call* call) {
    Routing routing;
#pragma omp parallel
    for (long n = 0; n < count; n++) {
        if (ops[n]->wait) {
#pragma omp barrier
        }
        perform(ops[n], *call, routing);
    }
}
}
