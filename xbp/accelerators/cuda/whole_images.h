/* Layers on images of one sample at a time, in shared memory: `from` and `to` are [channel][row][column]. All threads
 * of a block call them, and wait before and after. KIND is what follows, from activations.h.
 *
 * A layer that keeps something writes the sample's row of it, in a `whole_layer`. Tiles and teams divide the work;
 * see whole.py, which chooses them. */

#define EACH(i, count) for (int i = threadIdx.x; i < (count); i += THREADS)
#define LANES (16 / (int)sizeof(real)) /* numbers of a load */
#define PADDED(tile) ((tile) <= 2 ? (tile) : ((tile) + LANES - 1) / LANES * LANES) /* numbers, in whole loads */

template <int TILE> __device__ inline void add_products(real (&sum)[TILE], real v, const real *kernel) {
    constexpr int STEP = TILE <= 2 ? TILE : LANES;
    #pragma unroll
    for (int o = 0; o < TILE; o++) {
        const several<STEP> some = ((const several<STEP> *)kernel)[o / STEP]; /* one load for all of its numbers */
        sum[o] += v * some.at[o % STEP];
    }
}

/* KIND(max(conv(x))), the maximum over windows of POOL_H × POOL_W side by side. */
template <int C, int H, int W, int O, int KH, int KW, int STRIDE_H, int STRIDE_W, int PAD_H, int PAD_W, int POOL_H,
          int POOL_W, int TILE, int TEAMS, int TILE_BACK, int TEAMS_BACK, int TEAMS_WEIGHT, typename KIND>
struct convolution {
    static constexpr int ROWS = ((H + 2 * PAD_H - KH) / STRIDE_H + 1) / POOL_H;
    static constexpr int COLUMNS = ((W + 2 * PAD_W - KW) / STRIDE_W + 1) / POOL_W;
    static constexpr int TAPS = KH * KW, PLACES = POOL_H * POOL_W, POSITIONS = ROWS * COLUMNS;
    static constexpr int IN = C * H * W, OUT = O * POSITIONS;
    static constexpr bool READS_X = true; /* in the backward */
    static constexpr int PATCH_H = (POOL_H - 1) * STRIDE_H + KH, PATCH_W = (POOL_W - 1) * STRIDE_W + KW;
    static constexpr int TILES = (O + TILE - 1) / TILE, TILES_BACK = (C + TILE_BACK - 1) / TILE_BACK;
    static constexpr int ALL = C * TAPS * TILES * PADDED(TILE), KERNELS = (ALL + 3) / 4 * 4;
    static constexpr int ALL_BACK = O * TAPS * TILES_BACK * PADDED(TILE_BACK), KERNELS_BACK = (ALL_BACK + 3) / 4 * 4;

    /* [channel][tap][tile][output of the tile] */
    static __device__ void load(real *kernels, const whole_layer &p) {
        EACH(k, ALL) {
            const int of = k % PADDED(TILE), o = k / PADDED(TILE) % TILES * TILE + of, ct = k / PADDED(TILE) / TILES;
            kernels[k] = of < TILE && o < O ? p.weight[(o * C + ct / TAPS) * TAPS + ct % TAPS] : 0;
        }
    }

    /* [output][tap][tile][channel of the tile] */
    static __device__ void load_back(real *kernels, const whole_layer &p) {
        EACH(k, ALL_BACK) {
            const int of = k % PADDED(TILE_BACK), c = k / PADDED(TILE_BACK) % TILES_BACK * TILE_BACK + of;
            const int ot = k / PADDED(TILE_BACK) / TILES_BACK;
            kernels[k] = of < TILE_BACK && c < C ? p.weight[(ot / TAPS * C + c) * TAPS + ot % TAPS] : 0;
        }
    }

    /* The larger of the places' sums, and what follows. */
    static __device__ void finish(const real (&z)[PLACES], int o, int at, real *to, const whole_layer &p, int sample) {
        const real bias = p.bias ? p.bias[o] : 0;
        real best = z[0] + bias;
        int place = 0;
        #pragma unroll
        for (int k = 1; k < PLACES; k++) {
            const real v = z[k] + bias;
            if (v > best || v != v) best = v, place = k; /* nan: the last */
        }
        const int e = o * POSITIONS + at;
        to[e] = best = KIND::of(best);
        p.y[(long long)sample * OUT + e] = best;
        if (PLACES > 1) p.where[(long long)sample * OUT + e] = place;
    }

    /* A thread computes TILE outputs of an entry; TEAMS of threads share the channels, and their sums are added. */
    static __device__ void forward(const real *from, real *to, const real *kernels, real *sums, const whole_layer &p,
                                   int sample) {
        EACH(item, POSITIONS * TILES * TEAMS) {
            const int at = item % POSITIONS, tile = item / POSITIONS % TILES, team = item / POSITIONS / TILES;
            const int top = at / COLUMNS * POOL_H * STRIDE_H - PAD_H;
            const int left = at % COLUMNS * POOL_W * STRIDE_W - PAD_W;
            real sum[PLACES][TILE] = {};
            #pragma unroll 1
            for (int c = team; c < C; c += TEAMS) {
                real patch[PATCH_H][PATCH_W];
                #pragma unroll
                for (int i = 0; i < PATCH_H; i++)
                    #pragma unroll
                    for (int j = 0; j < PATCH_W; j++) {
                        const int r = top + i, q = left + j;
                        const bool padding = (PAD_H || PAD_W) && (r < 0 || r >= H || q < 0 || q >= W);
                        patch[i][j] = padding ? 0 : from[(c * H + r) * W + q];
                    }
                #pragma unroll
                for (int tap = 0; tap < TAPS; tap++) {
                    const real *kernel = kernels + ((c * TAPS + tap) * TILES + tile) * PADDED(TILE);
                    #pragma unroll
                    for (int k = 0; k < PLACES; k++)
                        add_products<TILE>(
                            sum[k], patch[k / POOL_W * STRIDE_H + tap / KW][k % POOL_W * STRIDE_W + tap % KW], kernel);
                }
            }
            #pragma unroll
            for (int o = 0; o < TILE; o++) {
                real z[PLACES];
                #pragma unroll
                for (int k = 0; k < PLACES; k++) z[k] = sum[k][o];
                if (TEAMS == 1) {
                    if (tile * TILE + o < O) finish(z, tile * TILE + o, at, to, p, sample);
                } else
                    #pragma unroll
                    for (int k = 0; k < PLACES; k++)
                        sums[(((team * TILES + tile) * TILE + o) * PLACES + k) * POSITIONS + at] = z[k];
            }
        }
        if (TEAMS == 1) return;
        __syncthreads();
        EACH(e, OUT) {
            real z[PLACES];
            #pragma unroll
            for (int k = 0; k < PLACES; k++) {
                z[k] = 0;
                for (int team = 0; team < TEAMS; team++)
                    z[k] += sums[((team * TILES * TILE + e / POSITIONS) * PLACES + k) * POSITIONS + e % POSITIONS];
            }
            finish(z, e / POSITIONS, e % POSITIONS, to, p, sample);
        }
    }

    /* ∂L/∂(the sums), of the places that maxima came from; and these. */
    static __device__ void before_maximum(real *delta, unsigned char *places, const whole_layer &p, int sample) {
        EACH(e, OUT) {
            delta[e] = KIND::through(p.y[(long long)sample * OUT + e], delta[e]);
            if (PLACES > 1) places[e] = p.where[(long long)sample * OUT + e];
        }
    }

    /* The block's share of ∂L/∂W and ∂L/∂b, to which each sample adds: a thread has a row of taps of a kernel, and
     * with TEAMS_WEIGHT > 1 a part of the entries. */
    static __device__ void to_weight(const real *x, const real *delta, const unsigned char *places, real *sums,
                                     real *share, bool fresh) {
        constexpr int ITEMS = O * C * KH;
        EACH(k, ITEMS * TEAMS_WEIGHT) {
            const int item = k % ITEMS, team = k / ITEMS, i = item % KH, c = item / KH % C, o = item / KH / C;
            real sum[KW] = {}, whole = 0;
            for (int at = team; at < POSITIONS; at += TEAMS_WEIGHT) {
                const real d = delta[o * POSITIONS + at];
                const int place = PLACES > 1 ? places[o * POSITIONS + at] : 0;
                const int r = (at / COLUMNS * POOL_H + place / POOL_W) * STRIDE_H - PAD_H + i;
                const int q = (at % COLUMNS * POOL_W + place % POOL_W) * STRIDE_W - PAD_W;
                whole += d;
                if (PAD_H && (r < 0 || r >= H)) continue;
                #pragma unroll
                for (int j = 0; j < KW; j++)
                    if (!PAD_W || (q + j >= 0 && q + j < W)) sum[j] += d * x[(c * H + r) * W + q + j];
            }
            #pragma unroll
            for (int j = 0; j < KW; j++)
                if (TEAMS_WEIGHT == 1) add_to(share[item * KW + j], sum[j], fresh);
                else sums[(team * (KW + 1) + j) * ITEMS + item] = sum[j];
            if (TEAMS_WEIGHT > 1) sums[(team * (KW + 1) + KW) * ITEMS + item] = whole;
            else if (item % (C * KH) == 0) add_to(share[ITEMS * KW + o], whole, fresh);
        }
        if (TEAMS_WEIGHT == 1) return;
        __syncthreads();
        EACH(k, ITEMS * KW + O) {
            const bool bias = k >= ITEMS * KW;
            const int j = bias ? KW : k % KW, item = bias ? (k - ITEMS * KW) * C * KH : k / KW;
            real total = 0;
            for (int team = 0; team < TEAMS_WEIGHT; team++) total += sums[(team * (KW + 1) + j) * ITEMS + item];
            add_to(share[k], total, fresh);
        }
    }

    static __device__ void add_to(real &share, real sum, bool fresh) { share = fresh ? sum : share + sum; }

    /* ∂L/∂x; a thread computes TILE_BACK channels of a block of pixels, as `convolve_to_input` in convolution.cu. */
    static constexpr int STEP_H = POOL_H * STRIDE_H, STEP_W = POOL_W * STRIDE_W, SPOTS = STEP_H * STEP_W;
    static constexpr int REACH_H = (KH - 1 + (POOL_H - 1) * STRIDE_H) / STEP_H + 1;
    static constexpr int REACH_W = (KW - 1 + (POOL_W - 1) * STRIDE_W) / STEP_W + 1, REACHES = REACH_H * REACH_W;
    static constexpr int ABOVE = PAD_H / STEP_H, BEFORE = PAD_W / STEP_W; /* blocks of padding alone */
    static constexpr int ACROSS = (W - 1 + PAD_W) / STEP_W - BEFORE + 1;
    static constexpr int BLOCKS = ((H - 1 + PAD_H) / STEP_H - ABOVE + 1) * ACROSS;

    static __device__ void to_input(const real *delta, const unsigned char *places, const real *kernels, real *sums,
                                    real *to) {
        EACH(item, BLOCKS * TILES_BACK * TEAMS_BACK) {
            const int block = item % BLOCKS, tile = item / BLOCKS % TILES_BACK, team = item / BLOCKS / TILES_BACK;
            const int down = block / ACROSS + ABOVE, right = block % ACROSS + BEFORE;
            real sum[SPOTS][TILE_BACK] = {};
            #pragma unroll 1
            for (int o = team; o < O; o += TEAMS_BACK) {
                int from[REACHES];
                real d[REACHES];
                #pragma unroll
                for (int k = 0; k < REACHES; k++) {
                    const int row = down + 1 - REACH_H + k / REACH_W, column = right + 1 - REACH_W + k % REACH_W;
                    const bool inside = row >= 0 && row < ROWS && column >= 0 && column < COLUMNS;
                    const int entry = inside ? (o * ROWS + row) * COLUMNS + column : 0;
                    from[k] = PLACES > 1 ? places[entry] : 0;
                    d[k] = inside ? delta[entry] : 0;
                }
                #pragma unroll
                for (int k = 0; k < REACHES; k++)
                    #pragma unroll
                    for (int q = 0; q < PLACES; q++) {
                        const real its = from[k] == q ? d[k] : 0;
                        #pragma unroll
                        for (int s = 0; s < SPOTS; s++) {
                            const int i = (REACH_H - 1 - k / REACH_W) * STEP_H - q / POOL_W * STRIDE_H + s / STEP_W;
                            const int j = (REACH_W - 1 - k % REACH_W) * STEP_W - q % POOL_W * STRIDE_W + s % STEP_W;
                            if (i < 0 || i >= KH || j < 0 || j >= KW) continue;
                            const int tap = (o * KH + i) * KW + j;
                            add_products<TILE_BACK>(
                                sum[s], its, kernels + (tap * TILES_BACK + tile) * PADDED(TILE_BACK));
                        }
                    }
            }
            #pragma unroll
            for (int k = 0; k < SPOTS * TILE_BACK; k++) {
                const int s = k / TILE_BACK, c = tile * TILE_BACK + k % TILE_BACK;
                const int row = down * STEP_H - PAD_H + s / STEP_W, column = right * STEP_W - PAD_W + s % STEP_W;
                if (c >= C || row < 0 || row >= H || column < 0 || column >= W) continue;
                to_or_sums(to, sums, team)[(c * H + row) * W + column] = sum[s][k % TILE_BACK];
            }
        }
        if (TEAMS_BACK == 1) return;
        __syncthreads();
        EACH(e, IN) {
            real total = 0;
            for (int team = 0; team < TEAMS_BACK; team++) total += sums[team * IN + e];
            to[e] = total;
        }
    }

    static __device__ real *to_or_sums(real *to, real *sums, int team) {
        return TEAMS_BACK == 1 ? to : sums + team * IN;
    }

    /* ∂L/∂x takes the place of x. */
    template <bool WANTED>
    static __device__ void backward(real *delta, real *x, const real *kernels, unsigned char *places, real *sums,
                                    const whole_layer &p, int sample, long long row, bool fresh) {
        before_maximum(delta, places, p, sample);
        __syncthreads();
        to_weight(x, delta, places, sums, p.partial + row, fresh);
        if (!WANTED) return;
        __syncthreads();
        to_input(delta, places, kernels, sums, x);
    }
};

/* KIND(max or mean of windows). */
template <int C, int H, int W, int KH, int KW, int STRIDE_H, int STRIDE_W, int PAD_H, int PAD_W, bool AVERAGE,
          typename KIND>
struct pooling {
    static constexpr int ROWS = (H + 2 * PAD_H - KH) / STRIDE_H + 1, COLUMNS = (W + 2 * PAD_W - KW) / STRIDE_W + 1;
    static constexpr int IN = C * H * W, OUT = C * ROWS * COLUMNS, KERNELS = 0, KERNELS_BACK = 0;
    static constexpr bool READS_X = false;

    static __device__ void load(real *, const whole_layer &) {}
    static __device__ void load_back(real *, const whole_layer &) {}

    static __device__ void forward(const real *from, real *to, const real *, real *, const whole_layer &p, int sample) {
        EACH(e, OUT) {
            const int column = e % COLUMNS, row = e / COLUMNS % ROWS;
            const real *plane = from + e / COLUMNS / ROWS * H * W;
            real best = 0;
            int place = -1;
            #pragma unroll
            for (int k = 0; k < KH * KW; k++) {
                const int r = row * STRIDE_H - PAD_H + k / KW, q = column * STRIDE_W - PAD_W + k % KW;
                const bool inside = r >= 0 && r < H && q >= 0 && q < W;
                const real v = inside ? plane[r * W + q] : 0;
                if (AVERAGE) best += v;
                else if (inside && (place < 0 || v > best || v != v)) best = v, place = k; /* nan: the last */
            }
            to[e] = best = KIND::of(AVERAGE ? best / (KH * KW) : best);
            p.y[(long long)sample * OUT + e] = best;
            if (!AVERAGE) p.where[(long long)sample * OUT + e] = place;
        }
    }

    template <bool WANTED>
    static __device__ void backward(real *delta, real *to, const real *, unsigned char *places, real *,
                                    const whole_layer &p, int sample, long long, bool) {
        if (!WANTED) return;
        EACH(e, OUT) {
            delta[e] = KIND::through(p.y[(long long)sample * OUT + e], delta[e]);
            if (!AVERAGE) places[e] = p.where[(long long)sample * OUT + e];
        }
        __syncthreads();
        EACH(at, IN) { /* the sum over the windows that contain it */
            const int w = at % W + PAD_W, h = at / W % H + PAD_H, channel = at / W / H;
            real sum = 0;
            for (int row = h < KH ? 0 : (h - KH) / STRIDE_H + 1; row < ROWS && row * STRIDE_H <= h; row++)
                for (int column = w < KW ? 0 : (w - KW) / STRIDE_W + 1; column < COLUMNS && column * STRIDE_W <= w;
                     column++) {
                    const int entry = (channel * ROWS + row) * COLUMNS + column;
                    const int place = (h - row * STRIDE_H) * KW + w - column * STRIDE_W;
                    if (AVERAGE || places[entry] == place) sum += delta[entry];
                }
            to[at] = AVERAGE ? sum / (KH * KW) : sum;
        }
    }
};
