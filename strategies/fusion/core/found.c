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

static double largest(const double *values, Py_ssize_t count)
{
    double most[4] = {0.0, 0.0, 0.0, 0.0}; /* four at a time, for speed */
    for (Py_ssize_t at = 0; at < count; at++) {
        most[at % 4] = values[at] > most[at % 4] ? values[at] : most[at % 4];
    }
    return fmax(fmax(most[0], most[1]), fmax(most[2], most[3]));
}

/* The places of the likeliest of `values`, ascending; of equal ones the first. A heap whose root is the one to give up next. */
static void likeliest(const double *values, Py_ssize_t count, Py_ssize_t *places)
{
#define WORSE(a, b) (values[a] < values[b] || (values[a] == values[b] && (a) > (b)))
    for (Py_ssize_t at = 0; at < count; at++) {
        Py_ssize_t hole;
        if (at < MOST_LISTED) {
            for (hole = at; hole > 0 && WORSE(at, places[(hole - 1) / 2]); hole = (hole - 1) / 2) {
                places[hole] = places[(hole - 1) / 2];
            }
        } else if (values[at] > values[places[0]]) {
            hole = 0;
            for (Py_ssize_t child = 1; child < MOST_LISTED; child = 2 * hole + 1) {
                if (child + 1 < MOST_LISTED && WORSE(places[child + 1], places[child])) {
                    child++;
                }
                if (!WORSE(places[child], at)) {
                    break;
                }
                places[hole] = places[child];
                hole = child;
            }
        } else {
            continue;
        }
        places[hole] = at;
    }
#undef WORSE
    for (Py_ssize_t at = 1; at < MOST_LISTED; at++) { /* few: by insertion */
        Py_ssize_t place = places[at], hole = at;
        for (; hole > 0 && places[hole - 1] > place; hole--) {
            places[hole] = places[hole - 1];
        }
        places[hole] = place;
    }
}

/* The likeliest of the tokens from `first` on; the others are outside. holder: bytes that hold the values. */
static int list(Readings *self, Node *node, const Py_buffer *ids, Py_ssize_t first, PyObject *holder, Py_ssize_t start)
{
    Py_ssize_t count = ids->shape[0] - first, listed = count > MOST_LISTED ? MOST_LISTED : count, places[MOST_LISTED];
    double *values = (double *)PyBytes_AS_STRING(holder) + start + first, *copy = NULL;
    node->outside = node->pmin = 0.0;
    if (node_lists(node, listed) < 0) {
        return -1;
    }
    if (listed == count) {
        for (Py_ssize_t at = 0; at < count; at++) {
            places[at] = at;
        }
    } else {
        likeliest(values, count, places);
    }
    for (Py_ssize_t at = 0; at < listed; at++) {
        if (!int32_at(ids, first + places[at], &node->ids[at])) {
            return -1;
        }
        node->probs[at] = values[places[at]];
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
            values[places[at]] = 0.0;
        }
        node->outside = pairwise_sum(values, count);
        node->pmin = largest(values, count);
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
