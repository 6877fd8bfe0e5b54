/* What `Readings.advance` does where the piece was looked up: there may be thousands of tokens. */

#include <math.h>
#include <string.h>

#include "advance.h"

#define MOST_LISTED 64 /* strategies.fusion.readings.MOST_LISTED */

/* Ids of all tokens that were looked up for a piece, to be released, and how many of them it completes. -1: an exception is set. */
int open_ids(const Found *found, Py_buffer *ids, Py_ssize_t *complete)
{
    Py_ssize_t count = found->count; /* `found` does not hold from here on */
    PyObject *tokens = Py_NewRef(found->tokens);
    PyObject *array = PyObject_GetAttr(tokens, name_ids);
    PyObject *whole = array == NULL ? NULL : PyObject_GetAttr(tokens, name_complete);
    int done = whole == NULL ? -1 : open_int32s(array, ids);
    if (done == 0) {
        *complete = PyLong_AsSsize_t(whole);
        if (!PyErr_Occurred() && (ids->shape[0] != count || *complete < 0 || *complete > count)) {
            PyErr_SetString(PyExc_ValueError, "these are not the tokens that were looked up");
        }
        if (PyErr_Occurred()) {
            PyBuffer_Release(ids);
            done = -1;
        }
    }
    Py_DECREF(tokens);
    Py_XDECREF(array);
    Py_XDECREF(whole);
    return done;
}

#define AT_ONCE 16

/* The largest of AT_ONCE values; zero if none is greater. In strands, so that a compiler compares several at once. */
static double largest(const double *values)
{
    double most[8] = {0.0};
    for (int at = 0; at < AT_ONCE; at++) {
        most[at % 8] = values[at] > most[at % 8] ? values[at] : most[at % 8];
    }
    for (int half = 4; half > 0; half /= 2) {
        for (int at = 0; at < half; at++) {
            most[at] = most[at + half] > most[at] ? most[at + half] : most[at];
        }
    }
    return most[0];
}

/* With its value beside it, for the values are too many for the nearest cache. */
typedef struct {
    double value;
    Py_ssize_t place;
} Kept;

static inline bool worse(Kept one, Kept other)
{
    return one.value < other.value || (one.value == other.value && one.place > other.place);
}

/* One more in a heap of so many whose root is the one to give up next. */
static void climb(Kept *heap, Py_ssize_t hole, Kept more)
{
    for (; hole > 0 && worse(more, heap[(hole - 1) / 2]); hole = (hole - 1) / 2) {
        heap[hole] = heap[(hole - 1) / 2];
    }
    heap[hole] = more;
}

/* One instead of the root of a full heap. */
static void sink(Kept *heap, Kept more)
{
    Py_ssize_t hole = 0;
    for (Py_ssize_t child = 1; child < MOST_LISTED; child = 2 * hole + 1) {
        if (child + 1 < MOST_LISTED && worse(heap[child + 1], heap[child])) {
            child++;
        }
        if (!worse(heap[child], more)) {
            break;
        }
        heap[hole] = heap[child];
        hole = child;
    }
    heap[hole] = more;
}

/* By place: few enough for insertion. */
static void in_order(Kept *kept)
{
    for (Py_ssize_t at = 1; at < MOST_LISTED; at++) {
        Kept one = kept[at];
        Py_ssize_t hole = at;
        for (; hole > 0 && kept[hole - 1].place > one.place; hole--) {
            kept[hole] = kept[hole - 1];
        }
        kept[hole] = one;
    }
}

/* The MOST_LISTED likeliest of more values, in their order; of equal ones the first. Returns the largest of the others. */
static double likeliest(const double *values, Py_ssize_t count, Kept *heap)
{
    double others = 0.0;
    Py_ssize_t at = 0;
    for (; at < MOST_LISTED; at++) {
        climb(heap, at, (Kept){values[at], at});
    }
    while (at < count) {
        Py_ssize_t stop = count - at < AT_ONCE ? count : at + AT_ONCE;
        double most = stop - at == AT_ONCE ? largest(values + at) : INFINITY;
        if (!(most > heap[0].value)) { /* nearly always: none of them gets in */
            others = most > others ? most : others;
            at = stop;
        }
        for (; at < stop; at++) {
            Kept out = {values[at], at};
            if (out.value > heap[0].value) {
                out = heap[0];
                sink(heap, (Kept){values[at], at});
            }
            others = out.value > others ? out.value : others;
        }
    }
    in_order(heap);
    return others;
}

/* The likeliest of the tokens from `first` on; the others are outside. holder: bytes that hold the values. */
static int list(Readings *self, Node *node, const Py_buffer *ids, Py_ssize_t first, PyObject *holder, Py_ssize_t start)
{
    Py_ssize_t count = ids->shape[0] - first, listed = count > MOST_LISTED ? MOST_LISTED : count;
    double *values = (double *)PyBytes_AS_STRING(holder) + start + first, *copy = NULL;
    Kept kept[MOST_LISTED];
    node->outside = node->pmin = 0.0;
    if (node_lists(node, listed) < 0) {
        return -1;
    }
    if (listed < count) {
        node->pmin = likeliest(values, count, kept);
    } else {
        for (Py_ssize_t at = 0; at < count; at++) {
            kept[at] = (Kept){values[at], at};
        }
    }
    for (Py_ssize_t at = 0; at < listed; at++) {
        if (!int32_at(ids, first + kept[at].place, &node->ids[at])) {
            return -1;
        }
        node->probs[at] = kept[at].value;
    }
    if (listed < count) {
        if (Py_REFCNT(holder) > 1) { /* hardly ever: what was looked up is let go when its piece is said, and then it is ours to change */
            copy = PyMem_Malloc((size_t)count * sizeof(double));
            if (copy == NULL) {
                PyErr_NoMemory();
                return -1;
            }
            values = memcpy(copy, values, (size_t)count * sizeof(double));
        }
        for (Py_ssize_t at = 0; at < listed; at++) {
            values[kept[at].place] = 0.0;
        }
        node->outside = pairwise_sum(values, count);
        PyMem_Free(copy);
    }
    return add_up(self, node);
}

/* Where the piece was looked up. 1: the node goes on with the tokens that reach beyond it; 0: there are none; -1: an exception is set. */
int go_on_found(Readings *self, Node *node, int32_t piece, const Found *found, Done *done)
{
    Py_ssize_t whole = 0, count = found->count, start = found->start;
    PyObject *holder = Py_NewRef(found->values);
    Py_buffer ids;
    if (open_ids(found, &ids, &whole) < 0) {
        Py_DECREF(holder);
        return -1;
    }
    int result = whole < count;
    for (Py_ssize_t at = 0; at < whole && result >= 0; at++) {
        int32_t token;
        double p = ((const double *)PyBytes_AS_STRING(holder))[start + at];
        if (!int32_at(&ids, at, &token) || complete(done, node, token, node->weight * p) < 0) {
            result = -1;
        }
    }
    if (result > 0 && (say(self, node, piece) < 0 || list(self, node, &ids, whole, holder, start) < 0)) {
        result = -1;
    }
    PyBuffer_Release(&ids);
    Py_DECREF(holder);
    return result;
}
