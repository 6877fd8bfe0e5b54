/* Numbers and arrays from Python, through the buffer protocol: nothing of numpy is needed to compile this. */

#include <math.h>
#include <string.h>

#include "core.h"

/* Loops over thousands of doubles, also for processors that take four at once. Both ways give the same bits, for nothing is contracted. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define WIDE __attribute__((target_clones("avx2", "default")))
#else
#define WIDE
#endif

/* A one-dimensional view whose items have one of these formats; strides are kept. -1: an exception is set. */
static int look(PyObject *array, Py_buffer *view, const char *formats, const char *wanted)
{
    if (PyObject_GetBuffer(array, view, PyBUF_FORMAT | PyBUF_STRIDES) < 0) {
        return -1;
    }
    const char *format = view->format ? view->format : "B";
    if (format[0] == '@' || format[0] == '=' || format[0] == (PY_LITTLE_ENDIAN ? '<' : '>')) {
        format++; /* numpy's '=': not aligned, which is no matter here */
    }
    if (view->ndim != 1) {
        PyErr_Format(PyExc_ValueError, "an array of one dimension is wanted, not of %d", view->ndim);
    } else if (format[0] == '\0' || format[1] != '\0' || strchr(formats, format[0]) == NULL) {
        PyErr_Format(PyExc_TypeError, "an array of %s is wanted, not of format '%s'", wanted, format);
    } else {
        return 0;
    }
    PyBuffer_Release(view);
    return -1;
}

int open_doubles(PyObject *array, Py_buffer *view)
{
    return look(array, view, "df", "float64");
}

int open_int32s(PyObject *array, Py_buffer *view)
{
    return look(array, view, "ilq", "int32");
}

/* So many values of a view, from one on. */
static void copy_doubles(const Py_buffer *view, Py_ssize_t first, Py_ssize_t count, double *into)
{
    const char *from = (const char *)view->buf + first * view->strides[0];
    if (view->itemsize == sizeof(double) && view->strides[0] == sizeof(double)) {
        memcpy(into, from, (size_t)count * sizeof(double));
        return;
    }
    for (Py_ssize_t at = 0; at < count; at++, from += view->strides[0]) {
        if (view->itemsize == sizeof(double)) {
            memcpy(&into[at], from, sizeof(double));
        } else {
            float single;
            memcpy(&single, from, sizeof single);
            into[at] = single;
        }
    }
}

bool int32_at(const Py_buffer *view, Py_ssize_t at, int32_t *value)
{
    const char *from = (const char *)view->buf + at * view->strides[0];
    if (view->itemsize == sizeof(int32_t)) {
        memcpy(value, from, sizeof(int32_t));
        return true;
    }
    int64_t wide;
    memcpy(&wide, from, sizeof wide);
    if (wide < INT32_MIN || wide > INT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "an id is too large");
        return false;
    }
    *value = (int32_t)wide;
    return true;
}

bool as_int32(PyObject *number, int32_t *value)
{
    int overflow;
    long found = PyLong_AsLongAndOverflow(number, &overflow);
    if (found == -1 && PyErr_Occurred()) {
        return false;
    }
    if (overflow || found < INT32_MIN || found > INT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "an id is too large");
        return false;
    }
    *value = (int32_t)found;
    return true;
}

#define LEAST (-700.0) /* from here to MOST, `power` is right */
#define MOST 700.0

#define PART 1024 /* values: 8 KB */

/* e to the x, for LEAST <= x <= MOST, within 4e-16 of its value: 2 to the whole part of x / ln 2, times a polynomial of the rest, which is at
 * most ln 2 / 2 (Taylor; the term left out is below 5e-18). Without a table or a branch, so that a compiler makes loops of it that take
 * several at once: five times as fast as the C library's, and the same bits on every machine. */
static inline double power(double x)
{
    const double shift = 6755399441055744.0; /* 1.5 * 2^52: adding it rounds to a whole number, which is in the lowest bits */
    double shifted = x * 1.4426950408889634074 + shift;
    double whole = shifted - shift;
    double r = (x - whole * 6.93147180369123816490e-01) - whole * 1.90821492927058770002e-10; /* ln 2 in two parts */
    double p = 1.0 / 6227020800;
    p = p * r + 1.0 / 479001600;
    p = p * r + 1.0 / 39916800;
    p = p * r + 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 1.0 / 2;
    uint64_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 1023) << 52;
    double scale;
    memcpy(&scale, &bits, sizeof scale);
    return scale * (r * r * p + r) + scale;
}

/* In place. False: some values are beyond what `power` is right for, and all are as they were. */
WIDE static bool powers(double *values, Py_ssize_t count)
{
    int odd = 0;
    for (Py_ssize_t at = 0; at < count; at++) {
        odd |= !(values[at] >= LEAST) | !(values[at] <= MOST);
    }
    for (Py_ssize_t at = 0; at < count && !odd; at++) {
        values[at] = power(values[at]);
    }
    return !odd;
}

/* Probabilities of natural logarithms, in place. */
static void exponentials(double *values, Py_ssize_t count)
{
    if (powers(values, count)) {
        return;
    }
    for (Py_ssize_t at = 0; at < count; at++) { /* zero probabilities, or nonsense: as the C library has it */
        bool odd = !(values[at] >= LEAST && values[at] <= MOST);
        values[at] = odd ? exp(values[at]) : power(values[at]);
    }
}

/* Probabilities of what a view has. In parts that stay in the nearest cache between reading and writing them. */
void probabilities(const Py_buffer *view, double *into)
{
    for (Py_ssize_t at = 0; at < view->shape[0]; at += PART) {
        Py_ssize_t count = view->shape[0] - at < PART ? view->shape[0] - at : PART;
        copy_doubles(view, at, count, into + at);
        exponentials(into + at, count);
    }
}

/* As numpy adds: by halves down to 128, there in eight strands. So sums over look-ups are equal to the last bit. */
double pairwise_sum(const double *values, Py_ssize_t count)
{
    if (count < 8) {
        double sum = 0.0;
        for (Py_ssize_t at = 0; at < count; at++) {
            sum += values[at];
        }
        return sum;
    }
    if (count <= 128) {
        double strands[8];
        Py_ssize_t at;
        memcpy(strands, values, sizeof strands);
        for (at = 8; at < count - count % 8; at += 8) {
            for (int strand = 0; strand < 8; strand++) {
                strands[strand] += values[at + strand];
            }
        }
        double sum = ((strands[0] + strands[1]) + (strands[2] + strands[3]))
                     + ((strands[4] + strands[5]) + (strands[6] + strands[7]));
        for (; at < count; at++) {
            sum += values[at];
        }
        return sum;
    }
    Py_ssize_t half = count / 2;
    half -= half % 8;
    return pairwise_sum(values, half) + pairwise_sum(values + half, count - half);
}
