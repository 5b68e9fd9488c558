/* Recurrent layers, chains of small linear layers and updates of optimizers against their definitions, for
 * one floating-point type `real`. Definitions are those of xbp/primitives, entry by entry in double. */
#ifndef OBJECTS
#define OBJECTS

/* Lists and arrays as arrays.h reads them, made by hand. */
typedef struct { void *count, *type; list_fields fields; } list_object;
typedef struct { void *count, *type; dtype_fields fields; } dtype_object;
typedef struct { void *count, *type; array_fields fields; intptr_t shape[2]; } array_object;

static char array_type;
static list_object none_object; /* as any object, with a header */
static const layout made_by_hand = {
    .header = offsetof(list_object, fields), .array = &array_type, .none = &none_object};

static double logistic(double a) { return 1 / (1 + exp(-a)); }

/* One step of a cell for one unit, whose projections are H apart, and its backward: ∂L/∂p, ∂L/∂q, and what goes
 * to the states before the step other than through q. */
static void unit_of(int cell, int64_t H, const double *p, const double *q, double *h, double *c) {
    if (cell == LSTM) {
        *c = logistic(p[H] + q[H]) * *c + logistic(p[0] + q[0]) * tanh(p[2 * H] + q[2 * H]);
        *h = logistic(p[3 * H] + q[3 * H]) * tanh(*c);
    } else if (cell == GRU) {
        const double r = logistic(p[0] + q[0]), z = logistic(p[H] + q[H]);
        *h = (1 - z) * tanh(p[2 * H] + r * q[2 * H]) + z * *h;
    } else
        *h = cell == RECTIFIED ? fmax(p[0] + q[0], 0) : tanh(p[0] + q[0]);
}

static void unit_backward(int cell, int64_t H, const double *p, const double *q, double h, double c, double *dh,
                          double *dc, double *dp, double *dq) {
    if (cell == LSTM) {
        const double i = logistic(p[0] + q[0]), f = logistic(p[H] + q[H]), g = tanh(p[2 * H] + q[2 * H]);
        const double o = logistic(p[3 * H] + q[3 * H]), tanh_c = tanh(f * c + i * g);
        *dc += *dh * o * (1 - tanh_c * tanh_c);
        dp[0] = *dc * g * i * (1 - i), dp[H] = *dc * c * f * (1 - f), dp[2 * H] = *dc * i * (1 - g * g);
        dp[3 * H] = *dh * tanh_c * o * (1 - o);
        for (int64_t k = 0; k < 4; k++) dq[k * H] = dp[k * H];
        *dc *= f, *dh = 0;
    } else if (cell == GRU) {
        const double r = logistic(p[0] + q[0]), z = logistic(p[H] + q[H]), n = tanh(p[2 * H] + r * q[2 * H]);
        dp[2 * H] = *dh * (1 - z) * (1 - n * n), dq[2 * H] = r * dp[2 * H];
        dp[0] = dq[0] = dp[2 * H] * q[2 * H] * r * (1 - r);
        dp[H] = dq[H] = *dh * (h - n) * z * (1 - z);
        *dh *= z;
    } else {
        const double a = p[0] + q[0], slope = cell == RECTIFIED ? a > 0 : 1 - tanh(a) * tanh(a);
        dp[0] = dq[0] = *dh * slope, *dh = 0;
    }
}

/* In `delta` and the sums, GRU's rows of q are in the order n, r, z, and those of p come after n's. */
static int64_t row_of_q(int cell, int64_t H, int64_t row) { return cell == GRU ? (row + H) % (3 * H) : row; }
static int64_t row_of_p(int cell, int64_t H, int64_t row) { return cell == GRU ? row + H : row; }
#endif

int NAME(recurrence)(const recurrence *t);
int NAME(recurrence_backward)(const recurrence *t);
int NAME(dense)(const layout *l, const void *list, int number, const char *activations, int64_t count, int threads);
int NAME(dense_backward)(const layout *l, const void *list, int number, const char *activations, int64_t count,
                         int threads);
#define UPDATE_OF(name) \
    int NAME(name)(const layout *l, const void *list, int number, real s, real t, real u, int threads);
UPDATE_OF(add_scaled)
UPDATE_OF(average)
UPDATE_OF(average_product)
UPDATE_OF(rescale)
UPDATE_OF(normalized_step)
#undef UPDATE_OF
int NAME(adaptive_step)(const layout *l, const void *list, int number, const real *numbers, int threads);

static real *NAME(zeros)(int64_t n) {
    real *x = room(n, sizeof(real));
    memset(x, 0, n * sizeof(real));
    return x;
}

/* --- recurrent layers --- */

/* p = W_ih x + b_ih and q = W_hh h + b_hh of one sample and time. */
static void NAME(projections)(const recurrence *t, int64_t rows, int64_t time, int64_t i, const double *h, double *p,
                              double *q) {
    const real *x = (const real *)t->x + (time * t->n + i) * t->in;
    for (int64_t row = 0; row < rows; row++) {
        p[row] = t->bias_ih ? ((const real *)t->bias_ih)[row] : 0;
        q[row] = t->bias_hh ? ((const real *)t->bias_hh)[row] : 0;
        for (int64_t j = 0; j < t->in; j++) p[row] += (double)((const real *)t->weight_ih)[row * t->in + j] * x[j];
        for (int64_t j = 0; j < t->hidden; j++)
            q[row] += ((const real *)t->weight_hh)[row * t->hidden + j] * h[j];
    }
}

/* The gradients, from the states of all times, h and c; dh and dc are ∂L/∂(last states), then ∂L/∂(first). */
static void NAME(recurrent_truth)(const recurrence *t, int64_t gates, const double *h, const double *c, double *dh,
                                  double *dc, double *dp, double *dq) {
    const int64_t n = t->n, H = t->hidden, rows = gates * H;
    double *p = room(rows, 8), *q = room(rows, 8), *through = room(H, 8);
    for (int64_t s = t->steps - 1; s >= 0; s--) {
        const int64_t time = t->reverse ? t->steps - 1 - s : s, earlier = time + (t->reverse ? 1 : -1);
        const int ends = s > 0 && earlier / t->chunk != time / t->chunk; /* no gradient beyond the chunk */
        for (int64_t i = 0; i < n; i++) {
            const int64_t before = ((time + !!t->reverse) * n + i) * H, at = (time * n + i) * rows;
            double *dh_i = dh + i * H, *dc_i = dc + i * H;
            for (int64_t u = 0; u < H; u++) dh_i[u] += ((const real *)t->dh)[time * t->dh_step + i * t->dh_row + u];
            if (t->padding && t->padding[time * n + i])
                for (int64_t row = 0; row < rows; row++) dp[at + row] = dq[at + row] = 0;
            else {
                NAME(projections)(t, rows, time, i, h + before, p, q);
                for (int64_t u = 0; u < H; u++)
                    unit_backward(t->cell, H, p + u, q + u, h[before + u], c[before + u], dh_i + u, dc_i + u,
                                  dp + at + u, dq + at + u);
                for (int64_t u = 0; u < H; u++) {
                    through[u] = 0;
                    for (int64_t row = 0; row < rows; row++)
                        through[u] += ((const real *)t->weight_hh)[row * H + u] * dq[at + row];
                }
                for (int64_t u = 0; u < H; u++) dh_i[u] += through[u];
            }
            for (int64_t u = 0; u < H && ends; u++) dh_i[u] = dc_i[u] = 0;
        }
    }
    free(p), free(q), free(through);
}

/* A layer forward and backward; `at_once`: its gradients are summed by the kernel, else `delta` is returned. */
static void NAME(recurrent)(int cell, int64_t steps, int64_t n, int64_t in, int64_t H, int reverse, int masked,
                            int at_once, int threads) {
    const int64_t gates = cell == LSTM ? 4 : cell == GRU ? 3 : 1, rows = gates * H, lanes = xbp_lanes(sizeof(real));
    const int64_t width = (gates > 1 ? 4 : 1) * H, all = steps * n, of_states = (steps + 1) * n * H;
    const int64_t first = reverse ? steps * n * H : 0, hh_row = H < lanes ? lanes : H;
    const int64_t sums_of_part = rows * (H + in) + width, terms = all + steps * (in + H);
    const int64_t groups = at_once ? 2 : threads;
    real *x = NAME(numbers)(all * in), *w_ih = NAME(numbers)(rows * in), *w_hh = NAME(numbers)(rows * H);
    real *b_ih = NAME(numbers)(rows), *b_hh = NAME(numbers)(rows), *dh = NAME(numbers)(all * H);
    real *h = NAME(zeros)(of_states), *c = NAME(zeros)(of_states), *kept = NAME(zeros)(all * 4 * H);
    real *dlast = NAME(numbers)(n * H), *dlast_c = NAME(numbers)(n * H), *around = NAME(zeros)(n * H);
    real *turned = NAME(zeros)(rows * hh_row), *delta = NAME(zeros)(all * width), *dx = NAME(zeros)(all * in);
    real *sums = NAME(zeros)(groups * sums_of_part), *dp_found = NAME(zeros)(all * rows);
    real *dq_found = NAME(zeros)(all * rows);
    double *th = room(of_states, 8), *tc = room(of_states, 8), *dp = room(all * rows, 8), *dq = room(all * rows, 8);
    double *tdh = room(n * H, 8), *tdc = room(n * H, 8), *p = room(rows, 8), *q = room(rows, 8);
    double *tdw_ih = room(rows * in, 8), *tdw_hh = room(rows * H, 8), *tdx = room(all * in, 8);
    double *tdb = room(2 * rows, 8);
    uint8_t *padding = room(all, 1);
    for (int64_t i = 0; i < all; i++) padding[i] = masked && i % 3 == 1;
    for (int64_t i = 0; i < rows * in; i++) w_ih[i] *= (real)0.3;
    for (int64_t i = 0; i < rows * H; i++) w_hh[i] *= (real)0.3; /* states neither grow nor saturate */
    for (int64_t i = 0; i < n * H; i++) h[first + i] = (real)drawn(), c[first + i] = (real)drawn();
    for (int64_t i = 0; i < of_states; i++) th[i] = h[i], tc[i] = c[i];
    for (int64_t i = 0; i < n * H; i++) tdh[i] = dlast[i], tdc[i] = dlast_c[i];

    recurrence t = {.x = x, .weight_ih = w_ih, .weight_hh = w_hh, .bias_ih = at_once ? b_ih : NULL,
                    .bias_hh = at_once ? b_hh : NULL, .padding = masked ? padding : NULL, .h = h,
                    .c = cell == LSTM ? c : NULL, .kept = kept, .steps = steps, .n = n, .in = in, .hidden = H,
                    .chunk = masked ? 2 : steps, .cell = cell, .reverse = reverse, .groups = groups,
                    .threads = threads};
    wrong += NAME(recurrence)(&t);
    for (int64_t s = 0; s < steps; s++)
        for (int64_t i = 0; i < n; i++) {
            const int64_t time = reverse ? steps - 1 - s : s, before = ((time + reverse) * n + i) * H;
            const int64_t after = ((time + !reverse) * n + i) * H;
            NAME(projections)(&t, rows, time, i, th + before, p, q);
            for (int64_t u = 0; u < H; u++) {
                th[after + u] = th[before + u], tc[after + u] = tc[before + u];
                if (!padding[time * n + i]) unit_of(cell, H, p + u, q + u, th + after + u, tc + after + u);
            }
        }
    NAME(compare)("recurrence, h", h, th, of_states, terms);
    if (cell == LSTM) NAME(compare)("recurrence, c", c, tc, of_states, terms);

    t.dh = dh, t.dh_step = n * H, t.dh_row = H;
    NAME(recurrent_truth)(&t, gates, th, tc, tdh, tdc, dp, dq);
    for (int64_t row = 0; row < rows; row++)
        memcpy(turned + row_of_q(cell, H, row) * hh_row, w_hh + row * H, H * sizeof(real));
    t.weight_hh = turned, t.hh_row = hh_row, t.dh_before = dlast, t.dc_before = cell == LSTM ? dlast_c : NULL;
    t.around = cell == GRU || masked ? around : NULL;
    if (at_once) t.sums = sums, t.dx = dx;
    else t.delta = delta;
    wrong += NAME(recurrence_backward)(&t);
    for (int64_t i = 0; i < n * H; i++) dlast[i] += around[i];
    NAME(compare)("recurrence_backward, first h", dlast, tdh, n * H, terms);
    if (cell == LSTM) NAME(compare)("recurrence_backward, first c", dlast_c, tdc, n * H, terms);

    for (int64_t i = 0; i < all && !at_once; i++)
        for (int64_t row = 0; row < rows; row++) {
            dp_found[i * rows + row] = delta[i * width + row_of_p(cell, H, row)];
            dq_found[i * rows + row] = delta[i * width + row_of_q(cell, H, row)];
        }
    if (!at_once) {
        NAME(compare)("recurrence_backward, dp", dp_found, dp, all * rows, terms);
        NAME(compare)("recurrence_backward, dq", dq_found, dq, all * rows, terms);
    } else {
        real *dw_hh = NAME(zeros)(rows * H), *dw_ih = NAME(zeros)(rows * in), *db = NAME(zeros)(2 * rows);
        for (int64_t row = 0; row < rows; row++) {
            tdb[row] = tdb[rows + row] = 0;
            for (int64_t j = 0; j < in; j++) tdw_ih[row * in + j] = 0;
            for (int64_t j = 0; j < H; j++) tdw_hh[row * H + j] = 0;
            for (int64_t i = 0; i < all; i++) {
                const int64_t before = (i + reverse * n) * H;
                tdb[row] += dp[i * rows + row], tdb[rows + row] += dq[i * rows + row];
                for (int64_t j = 0; j < in; j++) tdw_ih[row * in + j] += dp[i * rows + row] * x[i * in + j];
                for (int64_t j = 0; j < H; j++) tdw_hh[row * H + j] += dq[i * rows + row] * th[before + j];
            }
            for (int64_t part = 0; part < groups; part++) {
                const real *of_q = sums + part * sums_of_part, *of_p = of_q + rows * H, *bias = of_p + rows * in;
                for (int64_t j = 0; j < H; j++) dw_hh[row * H + j] += of_q[row_of_q(cell, H, row) * H + j];
                for (int64_t j = 0; j < in; j++) dw_ih[row * in + j] += of_p[row * in + j];
                db[row] += bias[row_of_p(cell, H, row)], db[rows + row] += bias[row_of_q(cell, H, row)];
            }
        }
        for (int64_t i = 0; i < all; i++)
            for (int64_t j = 0; j < in; j++) {
                tdx[i * in + j] = 0;
                for (int64_t row = 0; row < rows; row++) tdx[i * in + j] += dp[i * rows + row] * w_ih[row * in + j];
            }
        NAME(compare)("recurrence_backward, dW_hh", dw_hh, tdw_hh, rows * H, terms);
        NAME(compare)("recurrence_backward, dW_ih", dw_ih, tdw_ih, rows * in, terms);
        NAME(compare)("recurrence_backward, db", db, tdb, 2 * rows, terms);
        NAME(compare)("recurrence_backward, dx", dx, tdx, all * in, terms);
        free(dw_hh), free(dw_ih), free(db);
    }
    void *every[] = {x, w_ih, w_hh, b_ih, b_hh, dh, h, c, kept, dlast, dlast_c, around, turned, delta, dx, sums,
                     dp_found, dq_found, th, tc, dp, dq, tdh, tdc, p, q, tdw_ih, tdw_hh, tdx, tdb, padding};
    for (size_t i = 0; i < sizeof every / sizeof *every; i++) free(every[i]);
}

/* --- lists of arrays --- */

static dtype_object NAME(dtype) = {.fields = {.order = '=', .number = sizeof(real)}};

/* A row-major array of two axes, or of one if there are no rows. */
static void *NAME(array)(array_object *of, real *data, int64_t rows, int64_t columns) {
    *of = (array_object){.type = &array_type, .shape = {rows ? rows : columns, columns}};
    of->fields = (array_fields){.data = (char *)data, .axes = rows ? 2 : 1, .shape = of->shape, .dtype = &NAME(dtype),
                                .flags = PLAIN | IS_WRITEABLE};
    return of;
}

/* in → 17 by tanh → 8 by max(·, 0) → 33 by the logistic function → 4, the second without a bias. */
static void NAME(chains)(int64_t n, int64_t in, int threads) {
    enum { LAYERS = 4 };
    const char activations[LAYERS] = {2, 1, 3, 0}; /* as in dense.h */
    const int64_t sizes[LAYERS + 1] = {in, 17, 8, 33, 4}, lanes = xbp_lanes(sizeof(real));
    array_object held[5 + 4 * LAYERS];
    void *items[5 + 4 * LAYERS];
    list_object list = {.fields = {.size = 5 + 4 * LAYERS, .items = items}};
    real *w[LAYERS], *b[LAYERS], *dw[LAYERS], *db[LAYERS], *x = NAME(numbers)(n * in), *dx = NAME(zeros)(n * in);
    real *y = NAME(zeros)(n * 4), *dy = NAME(numbers)(n * 4);
    double *ty[LAYERS + 1], *dz = room(n * 33, 8), *below = room(n * 33, 8);
    int64_t kept = 0;
    for (int64_t l = 1; l < LAYERS; l++) kept += (sizes[l] + lanes - 1) / lanes * lanes * n;
    real *hidden = NAME(zeros)(kept);
    ty[0] = room(n * in, 8);
    for (int64_t i = 0; i < n * in; i++) ty[0][i] = x[i];
    items[0] = NAME(array)(held, x, n, in), items[1] = NAME(array)(held + 1, y, n, 4);
    items[2] = NAME(array)(held + 2, hidden, 0, kept);
    const int64_t after = 3 + 2 * LAYERS;
    items[after] = NAME(array)(held + after, dy, n, 4), items[after + 1] = NAME(array)(held + after + 1, dx, n, in);
    for (int64_t l = 0; l < LAYERS; l++) {
        const int64_t k = sizes[l], m = sizes[l + 1];
        w[l] = NAME(numbers)(m * k), b[l] = NAME(numbers)(m), dw[l] = NAME(zeros)(m * k), db[l] = NAME(zeros)(m);
        const int64_t at = 3 + 2 * l, gradient = after + 2 + 2 * l;
        items[at] = NAME(array)(held + at, w[l], m, k);
        items[gradient] = NAME(array)(held + gradient, dw[l], m, k);
        items[at + 1] = l == 1 ? (void *)&none_object : NAME(array)(held + at + 1, b[l], 0, m);
        items[gradient + 1] = l == 1 ? (void *)&none_object : NAME(array)(held + gradient + 1, db[l], 0, m);
        ty[l + 1] = room(n * m, 8);
        for (int64_t i = 0; i < n; i++)
            for (int64_t o = 0; o < m; o++) {
                double z = l == 1 ? 0 : b[l][o];
                for (int64_t j = 0; j < k; j++) z += w[l][o * k + j] * ty[l][i * k + j];
                ty[l + 1][i * m + o] = l == 0 ? tanh(z) : l == 1 ? fmax(z, 0) : l == 2 ? logistic(z) : z;
            }
    }
    wrong += NAME(dense)(&made_by_hand, &list, sizeof(real), activations, LAYERS, threads);
    NAME(compare)("dense", y, ty[LAYERS], n * 4, in);
    wrong += NAME(dense_backward)(&made_by_hand, &list, sizeof(real), activations, LAYERS, threads);
    for (int64_t i = 0; i < n * 4; i++) dz[i] = dy[i];
    for (int64_t l = LAYERS - 1; l >= 0; l--) {
        const int64_t k = sizes[l], m = sizes[l + 1];
        double *tdw = room(m * k, 8), *tdb = room(m, 8), *dx_below = l ? below : room(n * in, 8);
        for (int64_t i = 0; i < n * m; i++) {
            const double v = ty[l + 1][i];
            dz[i] *= l == 0 ? 1 - v * v : l == 1 ? v > 0 : l == 2 ? v * (1 - v) : 1;
        }
        for (int64_t i = 0; i < n * k; i++) dx_below[i] = 0;
        for (int64_t o = 0; o < m; o++) {
            tdb[o] = 0;
            for (int64_t j = 0; j < k; j++) tdw[o * k + j] = 0;
            for (int64_t i = 0; i < n; i++) {
                tdb[o] += dz[i * m + o];
                for (int64_t j = 0; j < k; j++) {
                    tdw[o * k + j] += dz[i * m + o] * ty[l][i * k + j];
                    dx_below[i * k + j] += dz[i * m + o] * w[l][o * k + j];
                }
            }
        }
        NAME(compare)("dense_backward, dW", dw[l], tdw, m * k, n + 33);
        if (l != 1) NAME(compare)("dense_backward, db", db[l], tdb, m, n + 33);
        if (l == 0) NAME(compare)("dense_backward, dx", dx, dx_below, n * in, 33), free(dx_below);
        double *swap = dz;
        dz = below, below = swap;
        free(tdw), free(tdb), free(ty[l + 1]), free(w[l]), free(b[l]), free(dw[l]), free(db[l]);
    }
    void *every[] = {x, dx, y, dy, hidden, ty[0], dz, below};
    for (size_t i = 0; i < sizeof every / sizeof *every; i++) free(every[i]);
}

/* Each pass over a list of three arrays, two of them too short for threads. */
static void NAME(passes)(int threads) {
    enum { ARRAYS = 3 };
    const int64_t sizes[ARRAYS] = {5, 1000, 40001};
    const real s = (real)0.75, t = (real)0.25, u = (real)0.125; /* exact */
    array_object held[4 * ARRAYS];
    void *items[4 * ARRAYS];
    real *x[4 * ARRAYS];
    double *truth[ARRAYS];
    list_object list = {.fields = {.items = items}};
    for (int64_t i = 0; i < 4 * ARRAYS; i++) {
        x[i] = NAME(numbers)(sizes[i % ARRAYS]);
        items[i] = NAME(array)(held + i, x[i], 0, sizes[i % ARRAYS]);
    }
    for (int64_t i = 0; i < ARRAYS; i++) {
        truth[i] = room(sizes[i], 8);
        for (int64_t k = 0; k < sizes[i]; k++) x[2 * ARRAYS + i][k] = (real)fabs((double)x[2 * ARRAYS + i][k]);
    }
#define PASS(name, partners, what)                                                             \
    for (int64_t i = 0; i < ARRAYS; i++)                                                       \
        for (int64_t k = 0; k < sizes[i]; k++) {                                               \
            const double to = x[i][k], a = x[ARRAYS + i][k], b = x[2 * ARRAYS + i][k];         \
            (void)a, (void)b;                                                                  \
            truth[i][k] = what;                                                                \
        }                                                                                      \
    list.fields.size = (1 + partners) * ARRAYS;                                                \
    wrong += NAME(name)(&made_by_hand, &list, sizeof(real), s, t, u, threads);                 \
    for (int64_t i = 0; i < ARRAYS; i++) NAME(compare)(#name, x[i], truth[i], sizes[i], 1);
    PASS(add_scaled, 1, to + s * a)
    PASS(average, 1, s * to + t * a)
    PASS(average_product, 2, s * to + t * a * b)
    PASS(rescale, 0, to * s)
    PASS(normalized_step, 2, to - s * a / (t * sqrt(b) + u))
#undef PASS
    const real numbers[] = {0.75, 0.25, 0.875, 0.125, s, 1.5, 0.01};
    double *averages[2 * ARRAYS];
    for (int64_t i = 0; i < ARRAYS; i++) {
        double *m = averages[i] = room(sizes[i], 8), *v = averages[ARRAYS + i] = room(sizes[i], 8);
        for (int64_t k = 0; k < sizes[i]; k++) {
            const double g = x[3 * ARRAYS + i][k];
            m[k] = 0.75 * x[ARRAYS + i][k] + 0.25 * g;
            v[k] = 0.875 * x[2 * ARRAYS + i][k] + 0.125 * g * g;
            truth[i][k] = x[i][k] - numbers[4] * m[k] / (1.5 * sqrt(v[k]) + numbers[6]);
        }
    }
    list.fields.size = 4 * ARRAYS;
    wrong += NAME(adaptive_step)(&made_by_hand, &list, sizeof(real), numbers, threads);
    for (int64_t i = 0; i < ARRAYS; i++) {
        NAME(compare)("adaptive_step", x[i], truth[i], sizes[i], 1);
        NAME(compare)("adaptive_step's m", x[ARRAYS + i], averages[i], sizes[i], 1);
        NAME(compare)("adaptive_step's v", x[2 * ARRAYS + i], averages[ARRAYS + i], sizes[i], 1);
        free(averages[i]), free(averages[ARRAYS + i]);
    }
    for (int64_t i = 0; i < 4 * ARRAYS; i++) free(x[i]);
    for (int64_t i = 0; i < ARRAYS; i++) free(truth[i]);
}

static void NAME(networks)(int threads) {
    for (int cell = ELMAN; cell <= GRU; cell++)
        for (int form = 0; form < 4; form++) { /* direction, and whether there is padding */
            NAME(recurrent)(cell, 5, 11, 3, 5, form % 2, form / 2, 0, threads);
            NAME(recurrent)(cell, 4, 7, 18, 37, form % 2, form / 2, 1, threads);
        }
    NAME(chains)(1, 5, threads);
    NAME(chains)(65, 5, threads);
    NAME(chains)(700, 21, threads);
    NAME(passes)(threads);
}
