/* reals.h - compiles the file named by REALS_FILE once with real = float and once with real = double (see op.h).
 * K(name) is name_f32 or name_f64; R(f) is the C library's function for the type: R(exp) is expf or exp. */
#define PG_PASTE_(a, b) a##b
#define PG_PASTE(a, b) PG_PASTE_(a, b)
#define REAL 1
#define real float
#define K(name) PG_PASTE(name, _f32)
#define R(fn) PG_PASTE(fn, f)
#define REAL_DTYPE PG_FLOAT32
#define REAL_IS_FLOAT 1
#include REALS_FILE
#undef real
#undef K
#undef R
#undef REAL_DTYPE
#undef REAL_IS_FLOAT
#define real double
#define K(name) PG_PASTE(name, _f64)
#define R(fn) fn
#define REAL_DTYPE PG_FLOAT64
#define REAL_IS_FLOAT 0
#include REALS_FILE
#undef real
#undef K
#undef R
#undef REAL_DTYPE
#undef REAL_IS_FLOAT
#undef REAL
