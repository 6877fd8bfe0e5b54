/* Look-ups of `Readings`: what is asked for where the session stands, and what came of it. */

#include <math.h>

#include "core.h"

void readings_drop_asked(Readings *self)
{
    Asked *asked = self->asked;
    Py_ssize_t askeds = self->askeds;
    self->asked = NULL;
    self->askeds = 0;
    for (Py_ssize_t at = 0; at < askeds; at++) {
        Py_DECREF(asked[at].tokens);
    }
    PyMem_Free(asked);
}

static int ask(Readings *self, int32_t piece, PyObject *tokens, Py_ssize_t count)
{
    Asked *asked = PyMem_Realloc(self->asked, (size_t)(self->askeds + 1) * sizeof(Asked));
    if (asked == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    self->asked = asked;
    asked[self->askeds++] = (Asked){Py_NewRef(tokens), count, piece};
    return 0;
}

/* One piece of `missing`. most: how many more unlisted tokens may be asked for. */
static int miss(Readings *self, Node *node, int32_t piece, Py_ssize_t *most, PyObject *list)
{
    int done = -1;
    PyObject *ids = NULL;
    PyObject *tokens = readings_continuing(self, node, piece);
    if (tokens == NULL || (ids = PyObject_GetAttr(tokens, name_ids)) == NULL) {
        goto end;
    }
    Py_ssize_t count = PyObject_Length(ids);
    if (count < 0) {
        goto end;
    }
    const Mass *mass = masses_find(&node->masses, piece);
    Py_ssize_t unlisted = count - (mass ? mass->listed : 0);
    if (unlisted == 0) {
        if (masses_at(&node->resolved, piece) == NULL) {
            goto end;
        }
        self->narrowed = 1;
    } else if (unlisted <= *most) {
        if (PyList_Append(list, ids) < 0 || ask(self, piece, tokens, count) < 0) {
            goto end;
        }
        *most -= unlisted;
    }
    done = 0;
end:
    Py_XDECREF(tokens);
    Py_XDECREF(ids);
    return done;
}

/* The arrays that `missing` joins. */
PyObject *readings_missing(PyObject *object, PyObject *args)
{
    Readings *self = (Readings *)object;
    PyObject *pieces;
    Py_ssize_t most;
    if (!PyArg_ParseTuple(args, "On", &pieces, &most)) {
        return NULL;
    }
    readings_drop_asked(self);
    self->narrowed = 0;
    PyObject *list = PyList_New(0), *numbers = PySequence_Tuple(pieces);
    Node *node = (Node *)Py_NewRef((PyObject *)self->position);
    if (list == NULL || numbers == NULL) {
        goto failed;
    }
    if (node->outside > 0.0 && list_holds(self->nodes, (PyObject *)node)) {
        for (Py_ssize_t at = 0; at < PyTuple_GET_SIZE(numbers); at++) {
            int32_t piece;
            if (piece_of(self, PyTuple_GET_ITEM(numbers, at), &piece) < 0) {
                goto failed;
            }
            if (masses_find(&node->resolved, piece) == NULL && miss(self, node, piece, &most, list) < 0) {
                goto failed;
            }
        }
    }
    Py_DECREF(node);
    Py_DECREF(numbers);
    return list;
failed:
    Py_DECREF(node);
    Py_XDECREF(numbers);
    Py_XDECREF(list);
    return NULL;
}

/* Probabilities of all that was asked for, as bytes; NULL with an exception set. The view stays open, so that no code of others runs
 * before the caller is done with what was asked for; it closes it. */
static PyObject *values_of(Readings *self, PyObject *logprobs, Py_buffer *view)
{
    if (open_doubles(logprobs, view) < 0) {
        return NULL;
    }
    Py_ssize_t count = 0, given = view->shape[0];
    for (Py_ssize_t at = 0; at < self->askeds && count <= given; at++) {
        count += self->asked[at].count;
    }
    if (count != given || given > PTRDIFF_MAX / (Py_ssize_t)sizeof(double)) {
        PyErr_Format(PyExc_ValueError, "%zd values are not what was asked for", given);
        return NULL;
    }
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, count * (Py_ssize_t)sizeof(double));
    if (bytes == NULL) {
        return NULL;
    }
    double *values = (double *)PyBytes_AS_STRING(bytes);
    probabilities(view, values);
    return bytes;
}

/* As numpy does it: `sum` over one, `add.reduceat` over several, which begins each with its first. */
static double sum_of(const double *values, Py_ssize_t count, bool one)
{
    return one || count == 0 ? pairwise_sum(values, count) : values[0] + pairwise_sum(values + 1, count - 1);
}

/* shown: the member's view, if it is a sum over readings, else NULL. */
static int put(Readings *self, Node *node, View *shown, PyObject *bytes)
{
    Py_ssize_t start = 0;
    for (Py_ssize_t at = 0; at < self->askeds; at++) {
        const Asked *asked = &self->asked[at];
        double sum = sum_of((const double *)PyBytes_AS_STRING(bytes) + start, asked->count, self->askeds == 1);
        Mass *mass = masses_at(&node->masses, asked->piece);
        Mass *viewed = shown == NULL ? NULL : masses_at(&shown->own, asked->piece);
        if (mass == NULL || (shown != NULL && viewed == NULL) || masses_at(&node->resolved, asked->piece) == NULL
            || node_add_found(node, asked->piece, asked->tokens, bytes, start, asked->count) < 0) {
            return -1;
        }
        start += asked->count;
        double more = sum - mass->mass;
        mass->mass = sum;
        node->seen += more;
        node->outside -= more;
        if (shown != NULL) {
            viewed->mass += node->weight * more;
            shown->seen += node->weight * more;
        }
    }
    node->outside = fmax(0.0, node->outside);
    if (shown == NULL) {
        return 0;
    }
    Py_CLEAR(shown->dict);
    shown->unseen = shown->fresh = 0.0;
    for (Py_ssize_t at = 0; at < PyList_GET_SIZE(self->nodes); at++) {
        Node *each = node_in(self->nodes, at);
        if (each == NULL) {
            return -1;
        }
        shown->unseen += each->weight * each->outside;
        if (each->at == 0) {
            shown->fresh += each->weight * each->outside;
        }
    }
    return 0;
}

PyObject *readings_supply(PyObject *object, PyObject *logprobs)
{
    Readings *self = (Readings *)object;
    Py_buffer given = {0};
    PyObject *bytes = values_of(self, logprobs, &given);
    int done = -1;
    if (bytes != NULL) {
        Node *node = (Node *)Py_NewRef((PyObject *)self->position);
        if (self->view != NULL && self->view->owner == node) {
            Py_CLEAR(self->view);
        }
        done = put(self, node, self->view, bytes);
        if (done < 0) {
            Py_CLEAR(self->view); /* made anew from what there is */
        }
        Py_DECREF(node);
        Py_DECREF(bytes);
    }
    PyBuffer_Release(&given);
    return done < 0 ? NULL : Py_NewRef(Py_None);
}

PyObject *readings_weigh(PyObject *object, PyObject *logprobs)
{
    Readings *self = (Readings *)object;
    Py_buffer given = {0};
    PyObject *dict = PyDict_New(), *bytes = dict == NULL ? NULL : values_of(self, logprobs, &given);
    const Node *node = self->position;
    bool fresh = node->at == 0;
    Py_ssize_t start = 0;
    for (Py_ssize_t at = 0; bytes != NULL && at < self->askeds; at++) {
        const Asked *asked = &self->asked[at];
        double sum = sum_of((const double *)PyBytes_AS_STRING(bytes) + start, asked->count, self->askeds == 1);
        PyObject *piece = PyLong_FromLong(asked->piece);
        PyObject *more = PyFloat_FromDouble(node->weight * (sum - masses_get(&node->masses, asked->piece)));
        if (piece == NULL || more == NULL || PyDict_SetItem(dict, piece, more) < 0) {
            Py_CLEAR(bytes);
        }
        Py_XDECREF(piece);
        Py_XDECREF(more);
        start += asked->count;
    }
    PyBuffer_Release(&given);
    PyObject *pair = bytes == NULL ? NULL : PyTuple_Pack(2, dict, fresh ? Py_True : Py_False);
    Py_XDECREF(bytes);
    Py_XDECREF(dict);
    return pair;
}
