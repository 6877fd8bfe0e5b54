/* Who could yet beat the winner: `LinearPool._rivals`. */

#include <math.h>
#include <stdlib.h>

#include "pool.h"

#define FAR 1e-9       /* further ahead than this by looser bounds is ahead by closer ones, whatever the rounding */

/* How far the winner is certainly ahead of a piece, before division by its lower bound: see `LinearPool._all_ahead`. -1: an exception. */
static int lead(const Sides *sides, int32_t piece, bool wide, double *difference)
{
    *difference = 0.0;
    for (Py_ssize_t at = 0; at < sides->count; at++) {
        const Side *side = &sides->side[at];
        double least = 0.0;
        if (side->view->unseen != 0.0) {
            least = readings_bound(side->member, piece, wide);
            if (least < 0.0) {
                return -1;
            }
            least = fmin(least, side->view->unseen);
        }
        double apart = side->mine - (masses_get(view_masses(side->view), piece) + least);
        if (apart > 0.0 || (sides->same && apart != 0.0)) {
            *difference += side->weight * apart / side->total;
        } else if (apart != 0.0) {
            *difference += side->weight * apart / (side->view->seen + least);
        }
    }
    return 0;
}

typedef struct {
    double ahead;
    int32_t piece;
} Rival;

static int by_lead(const void *one, const void *other)
{
    const Rival *a = one, *b = other;
    if (a->ahead != b->ahead) {
        return a->ahead < b->ahead ? -1 : 1;
    }
    return a->piece < b->piece ? -1 : a->piece > b->piece;
}

/* Of the pieces in `low` those that could yet beat the winner, strongest first. Their number; -1: an exception. */
static Py_ssize_t find_rivals(const Sides *sides, const Masses *low, int32_t winner, double floor, double unseen, Rival *rivals)
{
    double mark = floor - unseen; /* nothing unlisted adds more to a piece than all of it */
    Py_ssize_t pieces = 0, found = 0;
    for (Py_ssize_t at = 0; at < sides->count; at++) {
        const Readings *member = sides->side[at].member;
        pieces = PyTuple_GET_SIZE(member->pieces);
        for (Py_ssize_t place = 0; place < low->size; place++) {
            if (low->items[place].piece >= pieces) {
                PyErr_SetString(PyExc_ValueError, "views are not those of the members");
                return -1;
            }
            if (low->items[place].mass >= mark) {
                readings_bound_soon(member, low->items[place].piece);
            }
        }
    }
    for (Py_ssize_t place = 0; place < low->size; place++) {
        int32_t piece = low->items[place].piece;
        double difference = 0.0;
        if (!(low->items[place].mass >= mark) || piece == winner) {
            continue;
        }
        if (floor != 0.0) {
            if (lead(sides, piece, true, &difference) < 0) {
                return -1;
            }
            if (difference / floor > FAR) {
                continue;
            }
            if (lead(sides, piece, false, &difference) < 0) {
                return -1;
            }
        }
        double ahead = floor != 0.0 ? difference / floor : -1.0;
        if (ahead <= ROUNDING) {
            rivals[found++] = (Rival){ahead, piece};
        }
    }
    qsort(rivals, (size_t)found, sizeof(Rival), by_lead);
    return found;
}

/* Pieces that could yet beat the winner, strongest first, and the gap that the strongest leaves: see `LinearPool._rivals`. */
PyObject *rivals_of(const Sides *sides, int32_t winner, double *gap)
{
    Masses low = {0};
    Rival *rivals = NULL;
    PyObject *list = NULL;
    double unseen = 0.0;
    for (Py_ssize_t at = 0; at < sides->count; at++) {
        const Side *side = &sides->side[at];
        if (side->view->unseen != 0.0) {
            unseen += side->weight * unlisted(sides, side->view) / side->total;
        }
    }
    if (pool(sides, false, &low) < 0) {
        goto end;
    }
    rivals = PyMem_Malloc((size_t)(low.size + 1) * sizeof(Rival));
    if (rivals == NULL) {
        PyErr_NoMemory();
        goto end;
    }
    double floor = masses_get(&low, winner);
    Py_ssize_t found = find_rivals(sides, &low, winner, floor, unseen, rivals);
    if (found < 0) {
        goto end;
    }
    *gap = unseen - floor;
    if (found > 0) {
        *gap = fmax(*gap, fmax(0.0, -rivals[0].ahead * floor));
    } else if (unseen >= floor) {
        rivals[found++].piece = winner; /* only a piece that nobody listed could win: its exact values may raise its floor */
    }
    list = PyList_New(found);
    for (Py_ssize_t at = 0; list != NULL && at < found; at++) {
        PyObject *piece = PyLong_FromLong(rivals[at].piece);
        if (piece == NULL) {
            Py_CLEAR(list);
        } else {
            PyList_SET_ITEM(list, at, piece);
        }
    }
end:
    masses_clear(&low);
    PyMem_Free(rivals);
    return list;
}
