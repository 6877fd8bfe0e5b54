/* `Readings.advance` of strategies.fusion.readings: the group said a piece, a member keeps the readings that fit. */

#include <math.h>
#include <stdlib.h>

#include "advance.h"

#define NEGLIGIBLE 1e-7

static void drop_done(Done *done)
{
    for (Py_ssize_t at = 0; at < done->size; at++) {
        Py_DECREF(done->nodes[at]);
    }
    PyMem_Free(done->nodes);
}

int complete(Done *done, Node *parent, int32_t token, double weight)
{
    if (done->size == done->room) {
        Py_ssize_t room = done->room ? 2 * done->room : 8;
        Node **nodes = PyMem_Realloc(done->nodes, (size_t)room * sizeof(Node *));
        if (nodes == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        done->nodes = nodes;
        done->room = room;
    }
    Node *node = node_new(parent, token, weight);
    if (node == NULL) {
        return -1;
    }
    done->nodes[done->size++] = node;
    return 0;
}

/* Nothing is listed beyond `piece` yet. */
int say(Readings *self, Node *node, int32_t piece)
{
    PyObject *number = PyLong_FromLong(piece);
    PyObject *said = Py_NewRef(node->said);
    PyObject *spoken = number == NULL ? NULL : PyTuple_New(PyTuple_GET_SIZE(node->spoken) + 1);
    PyBytes_Concat(&said, PyTuple_GET_ITEM(self->pieces, piece)); /* drops the reference, and gives NULL where it fails */
    if (said == NULL || spoken == NULL) {
        goto failed;
    }
    for (Py_ssize_t at = 0; at < PyTuple_GET_SIZE(node->spoken); at++) {
        PyTuple_SET_ITEM(spoken, at, Py_NewRef(PyTuple_GET_ITEM(node->spoken, at)));
    }
    PyTuple_SET_ITEM(spoken, PyTuple_GET_SIZE(spoken) - 1, number);
    number = NULL;
    if (masses_find(&node->resolved, piece) != NULL) {
        node->outside = 0.0;
    } else if (node->outside > 0.0) {
        Py_ssize_t unlisted = readings_beginning(self, node, piece);
        if (unlisted < 0) {
            goto failed;
        }
        const Mass *mass = masses_find(&node->masses, piece);
        unlisted -= mass ? mass->listed : 0;
        node->outside = fmin(node->outside, node->pmin * (double)(unlisted > 0 ? unlisted : 0));
    }
    node->at++;
    node->counted = -1;
    Py_SETREF(node->said, said);
    Py_SETREF(node->spoken, spoken);
    masses_clear(&node->resolved);
    node_drop_found(node);
    return 0;
failed:
    Py_XDECREF(number);
    Py_XDECREF(said);
    Py_XDECREF(spoken);
    return -1;
}

/* Of the lists only what goes on beyond the piece. Results as above. */
static int go_on_listed(Readings *self, Node *node, int32_t piece, Done *done)
{
    Py_ssize_t after = node->at + 1, count = node->count, going = 0;
    for (Py_ssize_t at = 0; at < count; at++) {
        if (node->nexts[at] != piece) {
            continue;
        }
        Py_ssize_t length = readings_spelled(self, node->ids[at], 0, NULL);
        if (length < 0) {
            return -1;
        }
        if (node->count != count) {
            PyErr_SetString(PyExc_RuntimeError, "a place was changed while it was looked at");
            return -1;
        }
        if (length == after) {
            if (complete(done, node, node->ids[at], node->weight * node->probs[at]) < 0) {
                return -1;
            }
        } else {
            node->nexts[at] = -2; /* kept */
            going++;
        }
    }
    if (going == 0) {
        return 0;
    }
    if (say(self, node, piece) < 0) {
        return -1;
    }
    for (Py_ssize_t at = 0, kept = 0; at < node->count; at++) {
        if (node->nexts[at] == -2) {
            node->ids[kept] = node->ids[at];
            node->probs[kept++] = node->probs[at];
        }
    }
    node->count = going < node->count ? going : node->count;
    return add_up(self, node) < 0 ? -1 : 1;
}

/* Nearly always: the piece is one token, and nothing that is known goes on beyond it. 1: so it was; 0: it was not; -1: an exception. */
static int one_token(Readings *self, Node *node, int32_t piece)
{
    const Found *found = node_found(node, piece);
    double p, unlisted = 0.0;
    int32_t token;
    if (found != NULL) {
        if (found->count != 1) {
            return 0;
        }
        p = ((const double *)PyBytes_AS_STRING(found->values))[found->start];
        Py_ssize_t whole = 0;
        Py_buffer ids;
        if (open_ids(found, &ids, &whole) < 0) {
            return -1;
        }
        bool read = int32_at(&ids, 0, &token);
        PyBuffer_Release(&ids);
        if (!read || whole != 1) {
            return read ? 0 : -1;
        }
    } else {
        const Mass *mass = masses_find(&node->masses, piece);
        if (mass == NULL || mass->listed != 1) {
            return 0;
        }
        Py_ssize_t at = 0;
        while (at < node->count && node->nexts[at] != piece) {
            at++;
        }
        if (at == node->count) {
            return 0;
        }
        token = node->ids[at];
        p = node->probs[at];
        Py_ssize_t length = readings_spelled(self, token, 0, NULL);
        if (length != node->at + 1) {
            return length < 0 ? -1 : 0;
        }
        if (node->outside > 0.0 && (unlisted = readings_bound(self, piece, false)) < 0.0) {
            return -1;
        }
    }
    double mass = node->weight * p;
    if (!(mass > 0.0)) {
        return 0;
    }
    PyObject *nodes = PyList_New(0), *due = PyList_New(1);
    Node *next = nodes == NULL || due == NULL ? NULL : node_new(node, token, 1.0);
    if (next == NULL) {
        Py_XDECREF(nodes);
        Py_XDECREF(due);
        return -1;
    }
    PyList_SET_ITEM(due, 0, (PyObject *)next);
    self->lost = unlisted != 0.0 ? unlisted / (mass + unlisted) : 0.0;
    node_forget(node); /* our caller holds it */
    Py_CLEAR(self->view);
    Py_SETREF(self->nodes, nodes);
    Py_SETREF(self->due, due);
    return 1;
}

/* Likeliest first; then by token, and as they came. */
typedef struct {
    Node *node;
    Py_ssize_t place;
} Ranked;

static int by_weight(const void *one, const void *other)
{
    const Ranked *a = one, *b = other;
    if (a->node->weight != b->node->weight) {
        return a->node->weight > b->node->weight ? -1 : 1;
    }
    if (a->node->token != b->node->token) {
        return a->node->token < b->node->token ? -1 : 1;
    }
    return a->place < b->place ? -1 : a->place > b->place;
}

/* Keep the readings that matter; scale what is kept to one. pending: a list of nodes that go on. */
static int settle(Readings *self, PyObject *pending, Done *done, double unlisted)
{
    PyObject *nodes = PyList_New(0), *due = PyList_New(0);
    Ranked *ranked = PyMem_Malloc((size_t)(done->size ? done->size : 1) * sizeof(Ranked));
    Py_ssize_t waiting = PyList_GET_SIZE(pending);
    double total = 0.0, ended = 0.0;
    int result = -1;
    if (nodes == NULL || due == NULL || ranked == NULL) {
        if (ranked == NULL) {
            PyErr_NoMemory();
        }
        goto end;
    }
    for (Py_ssize_t at = 0; at < waiting; at++) {
        const Node *node = (const Node *)PyList_GET_ITEM(pending, at); /* a list of ours */
        total += node->weight * node->seen;
    }
    for (Py_ssize_t at = 0; at < done->size; at++) {
        ended += done->nodes[at]->weight;
        ranked[at] = (Ranked){done->nodes[at], at};
    }
    total += ended;
    self->lost = 0.0;
    if (total > 0.0) {
        qsort(ranked, (size_t)done->size, sizeof(Ranked), by_weight);
        double least = (self->share < NEGLIGIBLE ? self->share : NEGLIGIBLE) * total;
        double alive = 0.0, kept_mass = 0.0;
        for (Py_ssize_t at = 0; at < waiting; at++) {
            Node *node = (Node *)PyList_GET_ITEM(pending, at);
            double mass = node->weight * node->seen;
            if (mass >= least) {
                alive += mass;
                if (PyList_Append(nodes, (PyObject *)node) < 0) {
                    goto end;
                }
            }
        }
        Py_ssize_t kept = 0;
        while (kept < done->size && kept < self->beam && ranked[kept].node->weight >= self->share * total) {
            kept++;
        }
        if (kept == 0 && PyList_GET_SIZE(nodes) == 0 && done->size > 0) {
            kept = 1;
        }
        for (Py_ssize_t at = 0; at < kept; at++) {
            kept_mass += ranked[at].node->weight;
        }
        double mass = kept_mass + alive;
        double dropped = kept < done->size || PyList_GET_SIZE(nodes) < waiting ? total - mass : 0.0;
        self->lost = fmax(0.0, dropped + unlisted) / (total + unlisted);
        double scale = 1.0 / mass;
        for (Py_ssize_t at = kept; at-- > 0;) { /* the likeliest last, so that the session stands where the text most likely goes on */
            ranked[at].node->weight *= scale;
            if (PyList_Append(due, (PyObject *)ranked[at].node) < 0) {
                goto end;
            }
        }
        for (Py_ssize_t at = 0; at < PyList_GET_SIZE(nodes); at++) {
            ((Node *)PyList_GET_ITEM(nodes, at))->weight *= scale;
        }
    }
    Py_CLEAR(self->view);
    Py_SETREF(self->nodes, Py_NewRef(nodes));
    Py_SETREF(self->due, Py_NewRef(due));
    result = 0;
end:
    PyMem_Free(ranked);
    Py_XDECREF(nodes);
    Py_XDECREF(due);
    return result;
}

/* No reading fits: the Python side sets the member on tokens of its own. */
static int tokenize_anew(Readings *self, Node *last, PyObject *before, int32_t piece)
{
    PyObject *text = Py_NewRef(before);
    PyBytes_Concat(&text, PyTuple_GET_ITEM(self->pieces, piece));
    PyObject *done = text == NULL ? NULL : PyObject_CallMethod((PyObject *)self, "_retell", "OOi", last, text, (int)piece);
    self->repaired = PyBytes_GET_SIZE(before) > 0; /* a single unlisted token in its own right is no new tokenization */
    Py_XDECREF(text);
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

static int advance(Readings *self, PyObject *earlier, int32_t piece)
{
    Done done = {0};
    int result = -1;
    Node *last = self->position;
    for (Py_ssize_t at = 0; at < PyList_GET_SIZE(earlier); at++) {
        Node *node = node_in(earlier, at);
        if (node == NULL) {
            return -1;
        }
        if (at == 0 || node->weight > last->weight) {
            last = node;
        }
    }
    Py_INCREF(last);
    PyObject *before = Py_NewRef(last->said), *pending = PyList_New(0);
    double unlisted = pending == NULL ? -1.0 : readings_bound(self, piece, false);
    if (unlisted < 0.0) {
        goto end;
    }
    for (Py_ssize_t at = 0; at < PyList_GET_SIZE(earlier); at++) {
        Node *node = node_in(earlier, at);
        if (node == NULL) {
            goto end;
        }
        if (masses_find(&node->masses, piece) == NULL) {
            continue;
        }
        Py_INCREF(node);
        const Found *found = node_found(node, piece);
        int going = found ? go_on_found(self, node, piece, found, &done) : go_on_listed(self, node, piece, &done);
        if (going < 0 || (going > 0 && PyList_Append(pending, (PyObject *)node) < 0)) {
            Py_DECREF(node);
            goto end;
        }
        Py_DECREF(node);
    }
    if (settle(self, pending, &done, unlisted) < 0) {
        goto end;
    }
    if (PyList_GET_SIZE(self->nodes) == 0 && PyList_GET_SIZE(self->due) == 0 && tokenize_anew(self, last, before, piece) < 0) {
        goto end;
    }
    for (Py_ssize_t at = 0; at < PyList_GET_SIZE(earlier); at++) {
        Node *node = node_in(earlier, at);
        if (node == NULL) {
            goto end;
        }
        if (!list_holds(self->nodes, (PyObject *)node)) {
            node_forget(node);
        }
    }
    result = 0;
end:
    drop_done(&done);
    Py_XDECREF(pending);
    Py_DECREF(before);
    Py_DECREF(last);
    return result;
}

PyObject *readings_advance(PyObject *object, PyObject *number)
{
    Readings *self = (Readings *)object;
    int32_t piece;
    if (piece_of(self, number, &piece) < 0) {
        return NULL;
    }
    PyObject *earlier = Py_NewRef(self->nodes);
    int done = 0;
    self->repaired = 0;
    if (PyList_GET_SIZE(earlier) == 1) {
        Node *node = node_in(earlier, 0);
        Py_XINCREF(node);
        done = node == NULL ? -1 : one_token(self, node, piece);
        Py_XDECREF(node);
    }
    if (done == 0) {
        done = advance(self, earlier, piece);
    }
    Py_DECREF(earlier);
    return done < 0 ? NULL : Py_NewRef(Py_None);
}
