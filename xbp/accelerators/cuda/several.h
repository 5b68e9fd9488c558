template <int N> struct alignas(N * sizeof(real)) several { /* one load, one store */
    real at[N];
};
