// Sparse convolution over padded planes, and the few other layers that would otherwise leave that layout.
//
// A plane holds H rows of W pixels and one zero after each; planes stand one row and one pixel of zeros apart. A tap of
// a convolution is then one distance in memory, the same for every pixel, and a convolution is
//     output[row][p] = act(bias[row] + sum of weight * input[p + offset]) over the row's non-zero weights,
// which knows neither kernel size nor borders. A stride of 2 reads planes that `split` has taken apart by parity.
// Written for GCC's and Clang's vector types, so that one text serves AVX-512, AVX2, SSE and NEON.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <pthread.h>
#include <system_error>
#include <thread>
#include <type_traits>
#include <vector>

#if defined(__AVX512F__)
constexpr int LANES = 16, MOST_VECTORS = 26;
#elif defined(__AVX__)
constexpr int LANES = 8, MOST_VECTORS = 13;
#elif defined(__aarch64__)
constexpr int LANES = 4, MOST_VECTORS = 26;
#else
constexpr int LANES = 4, MOST_VECTORS = 12;
#endif
constexpr int MOST_ROWS = 16;

typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Bits __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

struct Weight {
    int32_t offset;
    float value;
};

enum Kind : int32_t { CONV, COPY, SPLIT, ADD, POOL };
enum Activation : int32_t { LINEAR, LEAKY, RELU };

// One layer, mirrored field by field in steps.py. Strides are in floats.
struct Step {
    int32_t kind, activation, batch, planes;
    int32_t height, width, positions, factor;
    int32_t vectors, chunks, rows, blocks;
    int32_t size, stride, before, after;
    int64_t in_image, in_plane, in_row, in_column;
    int64_t out_image, out_plane, out_row;
    const float *input, *other, *bias;
    float *output;
    const int32_t *mask, *starts, *bounds;
    const Weight *weights;
};

static inline Vector load(const float *from) { return *reinterpret_cast<const Vector *>(from); }
static inline void store(float *to, Vector values) { *reinterpret_cast<Vector *>(to) = values; }
static inline Vector activate(Vector values, int32_t activation) {
    const Vector zero = {};
    if (activation == LEAKY) return values > zero ? values : values * 0.1f;
    if (activation == RELU) return values > zero ? values : zero;
    return values;
}

// Store what a row's weights came to, activated, with `other` added, and zero where there is no pixel.
template <int T> static inline void finish(const Step &step, const Vector *sums, int64_t at, int row) {
    float *output = step.output + at + row * step.out_plane;
    const float *other = step.other ? step.other + at + row * step.out_plane : nullptr;
    const int32_t *mask = step.mask + at % step.out_image;
#pragma GCC unroll 32
    for (int t = 0; t < T; ++t) {
        Vector values = activate(sums[t], step.activation);
        if (other) values += load(other + t * LANES);
        const Bits keep = *reinterpret_cast<const Bits *>(mask + t * LANES);
        store(output + t * LANES, (Vector)((Bits)values & keep));
    }
}

// Compute T vectors of pixels of some groups of output planes. A group takes its weights block by block of input planes:
// a block's pixels come into the first-level cache once for the whole group, and there the rows' sums wait meanwhile.
template <int T>
static void convolve(const Step &step, const float *input, int64_t at, int first, int last) {
    alignas(64) float waiting[MOST_ROWS][T * LANES];
    for (int group = first; group < last; ++group) {
        const int begin = group * step.rows, rows = std::min(step.rows, step.planes - begin);
        for (int block = 0; block < step.blocks; ++block) {
            const int32_t *starts = step.starts + (group * step.blocks + block) * step.rows;
            for (int row = 0; row < rows; ++row) {
                Vector sums[T];
                const Vector bias = Vector{} + step.bias[begin + row];
#pragma GCC unroll 32
                for (int t = 0; t < T; ++t) sums[t] = block ? load(waiting[row] + t * LANES) : bias;
                const Weight *weight = step.weights + starts[row], *end = step.weights + starts[row + 1];
                for (; weight < end; ++weight) {
                    const float value = weight->value;
                    const float *from = input + weight->offset;
#pragma GCC unroll 32
                    for (int t = 0; t < T; ++t) sums[t] += value * load(from + t * LANES);
                }
                if (block + 1 == step.blocks) {
                    finish<T>(step, sums, at, begin + row);
                    continue;
                }
#pragma GCC unroll 32
                for (int t = 0; t < T; ++t) store(waiting[row] + t * LANES, sums[t]);
            }
        }
    }
}

using Convolve = void (*)(const Step &, const float *, int64_t, int, int);
template <int T> struct Table {
    static void fill(Convolve *table) {
        table[T] = convolve<T>;
        Table<T - 1>::fill(table);
    }
};
template <> struct Table<0> {
    static void fill(Convolve *) {}
};
static const struct Kernels {
    Convolve of[MOST_VECTORS + 1];
    Kernels() { Table<MOST_VECTORS>::fill(of); }
} KERNELS;

static int count_tiles(const Step &step) { return (step.positions / LANES + step.vectors - 1) / step.vectors; }

static void run_conv(const Step &step, int part) {
    const int tiles = count_tiles(step), per_image = tiles * step.chunks;
    const int image = part / per_image, tile = part % per_image / step.chunks, chunk = part % step.chunks;
    const int vectors = std::min(step.vectors, step.positions / LANES - tile * step.vectors);
    const int64_t position = (int64_t)tile * step.vectors * LANES;
    KERNELS.of[vectors](step, step.input + image * step.in_image + position, image * step.out_image + position,
                        step.bounds[chunk], step.bounds[chunk + 1]);
}

// Rows to rows of another layout, each pixel `factor` by `factor` times.
static void copy_plane(const Step &step, const float *input, float *output) {
    for (int y = 0; y < step.height; ++y, input += step.in_row) {
        float *row = output + (int64_t)y * step.factor * step.out_row;
        if (step.factor == 1 && step.in_column == 1) {
            std::memcpy(row, input, 4 * step.width);
            continue;
        }
        for (int x = 0; x < step.width; ++x)
            for (int f = 0; f < step.factor; ++f) row[x * step.factor + f] = input[x * step.in_column];
        for (int f = 1; f < step.factor; ++f) std::memcpy(row + f * step.out_row, row, 4 * step.width * step.factor);
    }
}

// Every second row and pixel, from each parity; height and width are the input's, planes that run out of pixels get zeros.
static void split_plane(const Step &step, const float *input, float *output) {
    const int height = (step.height + 1) / 2, width = (step.width + 1) / 2;
    for (int parity = 0; parity < step.factor; ++parity, output += step.out_plane) {
        const int down = parity / 2, right = parity % 2, wide = (step.width - right + 1) / 2;
        for (int y = 0; y < height; ++y) {
            float *row = output + y * step.out_row;
            const int source = 2 * y + down;
            const int count = source < step.height ? wide : 0;
            const float *from = input + source * step.in_row + right;
            for (int x = 0; x < count; ++x) row[x] = from[2 * x];
            for (int x = count; x < width; ++x) row[x] = 0;
        }
    }
}

static void add_plane(const Step &step, const float *input, const float *other, float *output) {
    for (int p = 0; p < step.positions; p += LANES)
        store(output + p, activate(load(input + p) + load(other + p), step.activation));
}

// The greatest of each `size` by `size` pixels, `stride` apart; what lies before and after the picture is never the greatest.
static void pool_plane(const Step &step, const float *input, float *output) {
    const int padding = step.before + step.after, stride = step.stride;
    const int height = (step.height + padding - step.size) / stride + 1;
    const int width = (step.width + padding - step.size) / stride + 1;
    std::vector<float> line(step.width + padding, -INFINITY);
    float *middle = line.data() + step.before;
    for (int y = 0; y < height; ++y) {
        const int first = y * stride - step.before, last = std::min(step.height, first + step.size);
        const float *from = input + std::max(0, first) * step.in_row;
        std::memcpy(middle, from, 4 * step.width);
        for (int i = std::max(0, first) + 1; i < last; ++i) {
            from += step.in_row;
            for (int x = 0; x < step.width; ++x) middle[x] = std::max(middle[x], from[x]);
        }
        float *row = output + y * step.out_row;
        for (int j = 0; j < step.size; ++j) {
            const float *next = line.data() + j;
            auto take = [&](auto apart) {
                for (int x = 0; x < width; ++x) row[x] = j ? std::max(row[x], next[x * apart]) : next[x * apart];
            };
            if (stride == 2) take(std::integral_constant<int, 2>());
            else take(stride);
        }
    }
}

static void run_plane(const Step &step, int part) {
    const int64_t image = part / step.planes, plane = part % step.planes;
    const int64_t from = image * step.in_image + plane * step.in_plane;
    float *output = step.output + image * step.out_image;
    if (step.kind == COPY) copy_plane(step, step.input + from, output + plane * step.out_plane);
    if (step.kind == SPLIT) split_plane(step, step.input + from, output + plane * step.factor * step.out_plane);
    if (step.kind == POOL) pool_plane(step, step.input + from, output + plane * step.out_plane);
    if (step.kind == ADD) add_plane(step, step.input + from, step.other + from, output + plane * step.out_plane);
}

static int count_parts(const Step &step) {
    return step.batch * (step.kind == CONV ? count_tiles(step) * step.chunks : step.planes);
}

constexpr int SPINS = 2000;
constexpr std::chrono::microseconds YIELDING{100};

// Steps on their way. A thread may join at any time: it takes parts of a step as long as there are any, and goes on to the
// next one when all are done, whoever did them.
class Job {
    const Step *steps;
    const int count;
    std::vector<std::atomic<int>> next, done;
    std::mutex mutex;
    std::condition_variable finished;
    std::atomic<int> sleepers{0};

    // Wait until all parts of a step are done: awake, then letting others have the core, then asleep. What is waited for so
    // long is a thread that another process keeps from its core, and a core of its own is what it needs.
    void wait(int index, int parts) {
        const auto is_done = [&] { return done[index].load() >= parts; };
        for (int spins = 0; spins < SPINS; ++spins)
            if (is_done()) return;
        for (const auto until = std::chrono::steady_clock::now() + YIELDING; std::chrono::steady_clock::now() < until;) {
            if (is_done()) return;
            std::this_thread::yield();
        }
        std::unique_lock<std::mutex> lock(mutex);
        ++sleepers;
        finished.wait(lock, is_done);
        --sleepers;
    }
    // Enter parts of a step as done. Who is about to sleep is counted before it looks for the last time, and so woken.
    void finish(int index, int parts, int mine) {
        if (done[index].fetch_add(mine) + mine < parts || sleepers.load() == 0) return;
        { std::lock_guard<std::mutex> lock(mutex); }
        finished.notify_all();
    }

  public:
    int wanted = 0, inside = 0; // helpers that may still come, and that are here; the pool's mutex guards both

    Job(const Step *steps, int count) : steps(steps), count(count), next(count), done(count) {
        for (int index = 0; index < count; ++index) next[index] = done[index] = 0;
    }
    void work() {
        for (int index = 0; index < count; ++index) {
            const Step &step = steps[index];
            const int parts = count_parts(step);
            int mine = 0;
            for (int part; (part = next[index].fetch_add(1, std::memory_order_relaxed)) < parts; ++mine) {
                if (step.kind == CONV) run_conv(step, part);
                else run_plane(step, part);
            }
            finish(index, parts, mine);
            wait(index, parts);
        }
    }
};

constexpr std::chrono::milliseconds AWAKE{1}; // after a job, before sleeping: the next picture may be near, a core slow to wake

// Threads that sleep between jobs. One job at a time has their help; another that comes meanwhile is done by its caller.
class Pool {
    std::mutex mutex;
    std::condition_variable come, gone;
    std::atomic<int> jobs{0};
    Job *present = nullptr;
    int size = 0;

    void wait_awake(int last) {
        const auto until = std::chrono::steady_clock::now() + AWAKE;
        while (jobs.load(std::memory_order_relaxed) == last && std::chrono::steady_clock::now() < until)
            std::this_thread::yield();
    }
    void serve() {
        std::unique_lock<std::mutex> lock(mutex);
        for (;;) {
            come.wait(lock, [&] { return present && present->wanted > 0; });
            Job *job = present;
            const int number = jobs;
            --job->wanted;
            ++job->inside;
            lock.unlock();
            job->work();
            lock.lock();
            if (--job->inside == 0) gone.notify_all();
            lock.unlock();
            wait_awake(number);
            lock.lock();
        }
    }

  public:
    void run(Job &job, int helpers) {
        {
            std::lock_guard<std::mutex> lock(mutex);
            for (; size < helpers; ++size) std::thread([this] { serve(); }).detach();
            if (!present) {
                job.wanted = helpers;
                present = &job;
                ++jobs;
            }
        }
        come.notify_all();
        job.work();
        std::unique_lock<std::mutex> lock(mutex);
        if (present == &job) present = nullptr;
        gone.wait(lock, [&] { return job.inside == 0; });
    }
};

// Never deleted: its threads sleep in it until the process ends. A forked process has none of them, and gets its own.
static Pool *pool = new Pool;
static const int forks = pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });

extern "C" int32_t count_lanes() { return LANES; }

extern "C" int32_t count_vectors() { return MOST_VECTORS; }

extern "C" int32_t count_rows() { return MOST_ROWS; }

extern "C" int32_t measure_step_bytes() { return sizeof(Step); }

// Run steps one after another on so many threads, the caller's among them; 1, and nothing is run, where the system gives
// too few threads.
extern "C" int32_t run_steps(const Step *steps, int32_t count, int32_t threads) {
    Job job(steps, count);
    try {
        pool->run(job, threads - 1);
    } catch (const std::system_error &) {
        return 1;
    }
    return 0;
}
