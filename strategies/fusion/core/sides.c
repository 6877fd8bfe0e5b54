/* Members in play, as the steps in pool.c take them from Python. */

#include "pool.h"

void close_sides(Sides *sides)
{
    for (Py_ssize_t at = 0; at < sides->count; at++) {
        Py_XDECREF(sides->side[at].member);
        Py_XDECREF(sides->side[at].view);
    }
    PyMem_Free(sides->side);
}

/* Without members only views are asked for; without views they are the members'. weights: may be NULL. -1: an exception is set, and nothing
 * is to be closed. */
int open_sides(Sides *sides, PyObject *members, PyObject *views, PyObject *weights)
{
    PyObject *given[] = {members, views, weights}, *lists[3] = {NULL, NULL, NULL};
    Py_ssize_t count = -1;
    int done = 0;
    *sides = (Sides){0};
    for (int which = 0; which < 3 && done == 0; which++) {
        if (given[which] == NULL) {
            continue;
        }
        lists[which] = PySequence_Tuple(given[which]);
        done = lists[which] == NULL ? -1 : 0;
        if (done == 0 && count >= 0 && PyTuple_GET_SIZE(lists[which]) != count) {
            done = -1;
            PyErr_SetString(PyExc_ValueError, "members, views and weights are not equally many");
        }
        count = done < 0 ? 0 : PyTuple_GET_SIZE(lists[which]);
    }
    if (done == 0 && (sides->side = PyMem_Calloc((size_t)(count ? count : 1), sizeof(Side))) == NULL) {
        PyErr_NoMemory();
        done = -1;
    }
    for (Py_ssize_t at = 0; at < count && done == 0; at++) {
        Side *side = &sides->side[at];
        PyObject *member = lists[0] == NULL ? NULL : PyTuple_GET_ITEM(lists[0], at);
        PyObject *view = lists[1] == NULL ? NULL : PyTuple_GET_ITEM(lists[1], at);
        if ((member != NULL && !PyObject_TypeCheck(member, &ReadingsType)) || (view != NULL && !Py_IS_TYPE(view, &ViewType))) {
            PyErr_SetString(PyExc_TypeError, "native readings and their views are wanted");
            done = -1;
            break;
        }
        side->view = view == NULL ? readings_view((Readings *)member) : (View *)Py_NewRef(view);
        if (side->view == NULL) {
            done = -1;
            break;
        }
        side->member = (Readings *)Py_XNewRef(member);
        sides->count = at + 1;
        side->total = side->view->seen + side->view->unseen;
        side->weight = weights == NULL ? 0.0 : PyFloat_AsDouble(PyTuple_GET_ITEM(lists[2], at));
        if (side->weight == -1.0 && PyErr_Occurred()) {
            done = -1;
        }
    }
    for (int which = 0; which < 3; which++) {
        Py_XDECREF(lists[which]);
    }
    if (done < 0) {
        close_sides(sides);
    }
    return done;
}
