/* The linear pool's steps over all members, as strategies.fusion.linear says them. */

#include <math.h>

#include "pool.h"

/* The most that can be on one piece that a member does not list. */
double unlisted(const Sides *sides, const View *view)
{
    return sides->same ? fmin(view->each, view->unseen) : view->unseen;
}

static double low_of(const Sides *sides, int32_t piece)
{
    double low = 0.0;
    for (Py_ssize_t at = 0; at < sides->count; at++) {
        const Side *side = &sides->side[at];
        low += side->weight / side->total * masses_get(view_masses(side->view), piece);
    }
    return low;
}

/* Σ weight · mass / total: with the estimated totals, or with the largest possible ones for lower bounds. */
int pool(const Sides *sides, bool estimate, Masses *scores)
{
    Py_ssize_t most = 0;
    for (Py_ssize_t at = 0; at < sides->count; at++) {
        most += view_masses(sides->side[at].view)->size;
    }
    masses_reserve(scores, most);
    for (Py_ssize_t at = 0; at < sides->count; at++) {
        const View *view = sides->side[at].view;
        double total = view->seen + (estimate ? view->fresh : view->unseen);
        if (total > 0.0) {
            const Masses *masses = view_masses(sides->side[at].view);
            double scale = sides->side[at].weight / total;
            for (Py_ssize_t place = 0; place < masses->size; place++) {
                Mass *score = masses_at(scores, masses->items[place].piece);
                if (score == NULL) {
                    return -1;
                }
                score->mass += masses->items[place].mass * scale;
            }
        }
    }
    return 0;
}

static bool counted(Py_ssize_t count, Py_ssize_t wanted, const char *name)
{
    if (count != wanted) {
        PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, not %zd", name, wanted, count);
    }
    return count == wanted;
}

/* pooled(views, weights, estimate) → dict piece → score */
static PyObject *pooled(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    Sides sides;
    Masses scores = {0};
    (void)module;
    if (!counted(count, 3, "pooled")) {
        return NULL;
    }
    int estimate = PyObject_IsTrue(args[2]);
    if (estimate < 0 || open_sides(&sides, NULL, args[0], args[1]) < 0) {
        return NULL;
    }
    PyObject *dict = pool(&sides, estimate, &scores) < 0 ? NULL : masses_dict(&scores);
    masses_clear(&scores);
    close_sides(&sides);
    return dict;
}

/* What leads by more than all that is unlisted: see `LinearPool._clear`. False: nothing does so. */
static bool leads(const Sides *sides, int32_t *winner, double *mark, double *estimate)
{
    double slack = 0.0, best = 0.0;
    bool any = false;
    for (Py_ssize_t at = 0; at < sides->count; at++) {
        const Side *side = &sides->side[at];
        if (view_masses(side->view)->size == 0 || side->total <= 0.0) {
            return false;
        }
        slack += side->weight * unlisted(sides, side->view) / side->total;
    }
    for (Py_ssize_t at = 0; at < sides->count; at++) {
        const Masses *masses = view_masses(sides->side[at].view);
        Py_ssize_t top = 0;
        for (Py_ssize_t place = 1; place < masses->size; place++) {
            if (masses->items[place].mass > masses->items[top].mass) {
                top = place;
            }
        }
        double low = low_of(sides, masses->items[top].piece);
        if (!any || low > best) {
            best = low;
            *winner = masses->items[top].piece;
            any = true;
        }
    }
    *mark = best - slack - ROUNDING;
    if (!any || !(*mark > 0.0)) {
        return false;
    }
    *estimate = 0.0;
    for (Py_ssize_t at = 0; at < sides->count; at++) {
        const Side *side = &sides->side[at];
        const Masses *masses = view_masses(side->view);
        double least = *mark * side->total;
        *estimate += side->weight * masses_get(masses, *winner) / (side->view->seen + side->view->fresh);
        for (Py_ssize_t place = 0; place < masses->size; place++) {
            int32_t piece = masses->items[place].piece;
            if (masses->items[place].mass >= least && piece != *winner && low_of(sides, piece) >= *mark) {
                return false;
            }
        }
    }
    return true;
}

/* The piece with the largest score, of equal ones the smallest. False: there is none. */
static bool greedy(const Masses *scores, int32_t *winner, double *score)
{
    for (Py_ssize_t at = 0; at < scores->size; at++) {
        const Mass *each = &scores->items[at];
        if (at == 0 || each->mass > *score || (each->mass == *score && each->piece < *winner)) {
            *score = each->mass;
            *winner = each->piece;
        }
    }
    return scores->size > 0;
}

/* Places of those that may have so much unlisted mass on the winner that it is worth a look-up: see `Pool._losing_much`. */
static PyObject *losing_much(const Sides *sides, int32_t winner, double share)
{
    PyObject *places = PyList_New(0);
    for (Py_ssize_t at = 0; places != NULL && at < sides->count; at++) {
        const Side *side = &sides->side[at];
        double limit = share * masses_get(view_masses(side->view), winner);
        if (!(side->view->unseen > limit)) {
            continue;
        }
        double most = -1.0;
        if (winner < 0 || winner >= PyTuple_GET_SIZE(side->member->pieces)) {
            PyErr_SetString(PyExc_IndexError, "an unknown piece");
        } else {
            most = readings_bound(side->member, winner, false);
        }
        PyObject *place = most > limit ? PyLong_FromSsize_t(at) : NULL;
        if (most < 0.0 || (most > limit && (place == NULL || PyList_Append(places, place) < 0))) {
            Py_CLEAR(places);
        }
        Py_XDECREF(place);
    }
    return places;
}

/* losing(members, views, winner, share) → places */
static PyObject *losing(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    Sides sides;
    int32_t winner;
    (void)module;
    if (!counted(count, 4, "losing") || !as_int32(args[2], &winner)) {
        return NULL;
    }
    double share = PyFloat_AsDouble(args[3]);
    if ((share == -1.0 && PyErr_Occurred()) || open_sides(&sides, args[0], args[1], NULL) < 0) {
        return NULL;
    }
    PyObject *places = losing_much(&sides, winner, share);
    close_sides(&sides);
    return places;
}

/* Where looking something up is worth it, as places; none of them where `share` is negative. */
static PyObject *places_to_ask(const Sides *sides, int32_t winner, PyObject *rivals, PyObject *ends, double share)
{
    if (share < 0.0) {
        return PyList_New(0);
    }
    PyObject *places = NULL, *number = PyLong_FromLong(winner);
    if (PyList_GET_SIZE(rivals) == 0) {
        int end = number == NULL ? -1 : PySequence_Contains(ends, number);
        places = end < 0 ? NULL : end ? PyList_New(0) : losing_much(sides, winner, share);
    } else if (number != NULL && (places = PyList_New(sides->count)) != NULL) {
        for (Py_ssize_t at = 0; places != NULL && at < sides->count; at++) {
            PyObject *place = PyLong_FromSsize_t(at);
            if (place == NULL) {
                Py_CLEAR(places);
            } else {
                PyList_SET_ITEM(places, at, place);
            }
        }
    }
    Py_XDECREF(number);
    return places;
}

/* decide(members, weights, same, ends, share) → (winner, score, gap, rivals, places to ask), or None where nothing is listed: what
 * `LinearPool._decide` finds where the likeliest piece is chosen, and nothing shapes or guides. */
static PyObject *decide(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    Sides sides;
    Masses scores = {0};
    (void)module;
    if (!counted(count, 5, "decide")) {
        return NULL;
    }
    int same = PyObject_IsTrue(args[2]);
    double share = same < 0 ? -1.0 : PyFloat_AsDouble(args[4]);
    if (PyErr_Occurred() || open_sides(&sides, args[0], NULL, args[1]) < 0) {
        return NULL;
    }
    sides.same = same;
    int32_t winner = 0;
    double mark = 0.0, score = 0.0, gap = 0.0;
    PyObject *rivals = NULL, *places = NULL, *result = NULL;
    if (leads(&sides, &winner, &mark, &score)) {
        gap = -mark;
        rivals = PyList_New(0);
    } else if (pool(&sides, true, &scores) < 0) {
        goto end;
    } else if (!greedy(&scores, &winner, &score)) {
        result = Py_NewRef(Py_None);
        goto end;
    } else {
        for (Py_ssize_t at = 0; at < sides.count; at++) {
            sides.side[at].mine = masses_get(view_masses(sides.side[at].view), winner);
        }
        rivals = rivals_of(&sides, winner, &gap);
    }
    if (rivals != NULL && (places = places_to_ask(&sides, winner, rivals, args[3], share)) != NULL) {
        result = Py_BuildValue("iddOO", (int)winner, score, gap, rivals, places);
    }
end:
    Py_XDECREF(rivals);
    Py_XDECREF(places);
    masses_clear(&scores);
    close_sides(&sides);
    return result;
}

/* due(members) → of each a tuple of nodes: see `Pool.due` */
static PyObject *due(PyObject *module, PyObject *given)
{
    (void)module;
    PyObject *members = PySequence_Tuple(given);
    PyObject *list = members == NULL ? NULL : PyList_New(PyTuple_GET_SIZE(members));
    for (Py_ssize_t at = 0; list != NULL && at < PyTuple_GET_SIZE(members); at++) {
        PyObject *member = PyTuple_GET_ITEM(members, at), *nodes = NULL;
        if (!PyObject_TypeCheck(member, &ReadingsType)) {
            PyErr_SetString(PyExc_TypeError, "native readings are wanted");
        } else {
            nodes = PyList_AsTuple(((Readings *)member)->due);
        }
        if (nodes == NULL) {
            Py_CLEAR(list);
        } else {
            PyList_SET_ITEM(list, at, nodes);
        }
    }
    Py_XDECREF(members);
    return list;
}

/* say(members, weights, piece, lost, worst) → (repairs, lost, worst): all of them advance; what they lose is added to what was lost */
static PyObject *say(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (!counted(count, 5, "say")) {
        return NULL;
    }
    double lost = PyFloat_AsDouble(args[3]), worst = PyErr_Occurred() ? 0.0 : PyFloat_AsDouble(args[4]);
    PyObject *members = PyErr_Occurred() ? NULL : PySequence_Tuple(args[0]);
    PyObject *weights = members == NULL ? NULL : PySequence_Tuple(args[1]);
    Py_ssize_t repairs = 0;
    PyObject *result = NULL;
    if (weights == NULL) {
        goto end;
    }
    if (PyTuple_GET_SIZE(weights) != PyTuple_GET_SIZE(members)) {
        PyErr_SetString(PyExc_ValueError, "members and weights are not equally many");
        goto end;
    }
    for (Py_ssize_t at = 0; at < PyTuple_GET_SIZE(members); at++) {
        PyObject *member = PyTuple_GET_ITEM(members, at);
        double weight = PyFloat_AsDouble(PyTuple_GET_ITEM(weights, at));
        if (!PyObject_TypeCheck(member, &ReadingsType)) {
            PyErr_SetString(PyExc_TypeError, "native readings are wanted");
        }
        if (PyErr_Occurred()) {
            goto end;
        }
        PyObject *done = readings_advance(member, args[2]);
        if (done == NULL) {
            goto end;
        }
        Py_DECREF(done);
        const Readings *said = (const Readings *)member;
        repairs += said->repaired;
        lost += weight * said->lost;
        worst = said->lost > worst ? said->lost : worst;
    }
    result = Py_BuildValue("ndd", repairs, lost, worst);
end:
    Py_XDECREF(members);
    Py_XDECREF(weights);
    return result;
}

/* exponentials(logprobs) → list of probabilities: for tests, which run the reference on the same ones */
static PyObject *list_exponentials(PyObject *module, PyObject *logprobs)
{
    Py_buffer view = {0};
    (void)module;
    if (open_doubles(logprobs, &view) < 0) {
        return NULL;
    }
    Py_ssize_t count = view.shape[0];
    double *values = PyMem_Calloc((size_t)(count ? count : 1), sizeof(double));
    PyObject *list = values == NULL ? PyErr_NoMemory() : PyList_New(count);
    if (list != NULL) {
        probabilities(&view, values);
    }
    for (Py_ssize_t at = 0; list != NULL && at < count; at++) {
        PyObject *number = PyFloat_FromDouble(values[at]);
        if (number == NULL) {
            Py_CLEAR(list);
        } else {
            PyList_SET_ITEM(list, at, number);
        }
    }
    PyMem_Free(values);
    PyBuffer_Release(&view);
    return list;
}

PyMethodDef pool_methods[] = {
    {"exponentials", list_exponentials, METH_O, NULL},
    {"pooled", (PyCFunction)(void (*)(void))pooled, METH_FASTCALL, NULL},
    {"say", (PyCFunction)(void (*)(void))say, METH_FASTCALL, NULL},
    {"decide", (PyCFunction)(void (*)(void))decide, METH_FASTCALL, NULL},
    {"due", due, METH_O, NULL},
    {"losing", (PyCFunction)(void (*)(void))losing, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};
