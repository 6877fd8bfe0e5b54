/* `Readings` of strategies.fusion.readings: feeding, views, bounds. Look-ups are in lookups.c, what happens when a piece is said in advance.c. */

#include <math.h>
#include <string.h>

#include "core.h"

static int set_list(PyObject **place, PyObject *list)
{
    if (list == NULL || !PyList_CheckExact(list)) {
        PyErr_SetString(PyExc_TypeError, "a list of nodes is wanted");
        return -1;
    }
    Py_XSETREF(*place, Py_NewRef(list));
    return 0;
}

int piece_of(Readings *self, PyObject *number, int32_t *piece)
{
    if (!as_int32(number, piece)) {
        return -1;
    }
    Py_ssize_t pieces = PyTuple_GET_SIZE(self->pieces);
    if (*piece < 0 || *piece >= pieces) {
        PyErr_Format(PyExc_IndexError, "piece %d of %zd", (int)*piece, pieces);
        return -1;
    }
    return 0;
}

/* Upper bound of the unlisted mass on one next piece; a piece of this member's. wide: a looser one, without counting tokens behind what
 * is pending, hence without Python code. Negative: an exception is set. */
double readings_bound(Readings *self, int32_t piece, bool wide)
{
    double total = 0.0;
    for (Py_ssize_t at = 0; at < PyList_GET_SIZE(self->nodes); at++) {
        Node *node = node_in(self->nodes, at);
        if (node == NULL) {
            return -1.0;
        }
        if (!(node->outside > 0.0) || masses_find(&node->resolved, piece) != NULL) {
            continue;
        }
        if (wide && node->at) {
            total += node->weight * node->outside;
            continue;
        }
        Py_INCREF(node);
        Py_ssize_t unlisted = readings_beginning(self, node, piece);
        if (unlisted < 0) {
            Py_DECREF(node);
            return -1.0;
        }
        const Mass *mass = masses_find(&node->masses, piece);
        unlisted -= mass ? mass->listed : 0;
        if (unlisted > 0) {
            total += node->weight * fmin(node->outside, node->pmin * (double)unlisted);
        }
        Py_DECREF(node);
    }
    return total;
}

View *readings_view(Readings *self)
{
    if (self->view == NULL) {
        self->view = view_of(self->nodes);
    }
    return (View *)Py_XNewRef((PyObject *)self->view);
}

static PyObject *view(Readings *self, PyObject *nothing)
{
    (void)nothing;
    return (PyObject *)readings_view(self);
}

static PyObject *bound(Readings *self, PyObject *number)
{
    int32_t piece;
    if (piece_of(self, number, &piece) < 0) {
        return NULL;
    }
    double most = readings_bound(self, piece, false);
    return most < 0.0 ? NULL : PyFloat_FromDouble(most);
}

static PyObject *bounds(Readings *self, PyObject *pieces)
{
    PyObject *numbers = PySequence_Tuple(pieces);
    PyObject *list = numbers == NULL ? NULL : PyList_New(PyTuple_GET_SIZE(numbers));
    for (Py_ssize_t at = 0; list != NULL && at < PyTuple_GET_SIZE(numbers); at++) {
        PyObject *most = bound(self, PyTuple_GET_ITEM(numbers, at));
        if (most == NULL) {
            Py_CLEAR(list);
        } else {
            PyList_SET_ITEM(list, at, most);
        }
    }
    Py_XDECREF(numbers);
    return list;
}

/* Lists */

/* What is listed at a node. */
static int fill(Readings *self, Node *node, const Py_buffer *ids, const Py_buffer *nats, double outside)
{
    const int32_t *first = self->first.buf;
    Py_ssize_t count = ids->shape[0], size = self->first.shape[0], pieces = PyTuple_GET_SIZE(self->pieces);
    if (nats->shape[0] != count) {
        PyErr_Format(PyExc_ValueError, "%zd ids have %zd log-probabilities", count, nats->shape[0]);
        return -1;
    }
    if (node_lists(node, count) < 0) {
        return -1;
    }
    for (Py_ssize_t at = 0; at < count; at += 8) {
        SOON((const char *)nats->buf + at * nats->strides[0]);
    }
    for (Py_ssize_t at = 0; at < count; at++) {
        int32_t id;
        if (!int32_at(ids, at, &id)) {
            return -1;
        }
        if (id < 0 || id >= size) {
            PyErr_Format(PyExc_IndexError, "token %d of a vocabulary of %zd", (int)id, size);
            return -1;
        }
        SOON(&first[id]);
        node->ids[at] = id;
    }
    probabilities(nats, node->probs);
    for (Py_ssize_t at = 0; at < count; at++) {
        node->nexts[at] = first[node->ids[at]];
        if (node->nexts[at] >= pieces) {
            PyErr_SetString(PyExc_IndexError, "a token is spelled with an unknown piece");
            return -1;
        }
    }
    if (node_add_up(node) < 0) {
        return -1;
    }
    node->seen = 0.0;
    for (Py_ssize_t at = 0; at < node->masses.size; at++) {
        node->seen += node->masses.items[at].mass;
    }
    if (!(node->seen + outside < INFINITY)) {
        PyErr_SetString(PyExc_ValueError, "a member's probabilities are not finite numbers");
        return -1;
    }
    node->outside = node->pmin = outside;
    if (count > 0 && node->probs[count - 1] < outside) {
        node->pmin = node->probs[count - 1];
    }
    return 0;
}

/* top: a TopK. */
static int take(Readings *self, Node *node, PyObject *top)
{
    PyObject *ids = PyObject_GetAttr(top, name_ids), *nats = ids ? PyObject_GetAttr(top, name_logprobs) : NULL;
    PyObject *rest = nats ? PyObject_GetAttr(top, name_outside) : NULL;
    Py_buffer id_view = {0}, nats_view = {0};
    int done = -1;
    if (rest != NULL) {
        double outside = PyFloat_AsDouble(rest);
        if (!(outside == -1.0 && PyErr_Occurred()) && open_int32s(ids, &id_view) == 0 && open_doubles(nats, &nats_view) == 0) {
            done = fill(self, node, &id_view, &nats_view, outside);
            if (done < 0) {
                node_forget(node); /* nothing half made */
            }
        }
    }
    PyBuffer_Release(&id_view);
    PyBuffer_Release(&nats_view);
    Py_XDECREF(ids);
    Py_XDECREF(nats);
    Py_XDECREF(rest);
    return done;
}

bool list_holds(PyObject *list, PyObject *item)
{
    for (Py_ssize_t at = 0; at < PyList_GET_SIZE(list); at++) {
        if (PyList_GET_ITEM(list, at) == item) {
            return true;
        }
    }
    return false;
}

static PyObject *feed(Readings *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2 || !Py_IS_TYPE(args[0], &NodeType)) {
        PyErr_SetString(PyExc_TypeError, "feed takes a native Node and its TopK");
        return NULL;
    }
    Node *node = (Node *)args[0];
    Py_ssize_t at = 0;
    while (at < PyList_GET_SIZE(self->due) && PyList_GET_ITEM(self->due, at) != args[0]) {
        at++;
    }
    if (at == PyList_GET_SIZE(self->due)) {
        PyErr_SetString(PyExc_ValueError, "this node is not due");
        return NULL;
    }
    if (take(self, node, args[1]) < 0) {
        return NULL;
    }
    PyObject *due = self->due; /* reading the lists ran code of theirs: the list may be another one, or shorter, by now */
    Py_INCREF(due);
    Py_ssize_t size = PyList_GET_SIZE(due);
    int done = PyList_SetSlice(due, at < size ? at : size, at < size ? at + 1 : size, NULL);
    Py_DECREF(due);
    if (done < 0 || PyList_Append(self->nodes, args[0]) < 0) {
        return NULL;
    }
    Py_CLEAR(self->view);
    Py_SETREF(self->position, (Node *)Py_NewRef(args[0]));
    Py_RETURN_NONE;
}

static PyObject *forget_all(Readings *self, PyObject *nothing)
{
    (void)nothing;
    PyObject *nodes = self->nodes, *none = PyList_New(0);
    if (none == NULL) {
        return NULL;
    }
    self->nodes = none;
    Py_CLEAR(self->view);
    for (Py_ssize_t at = 0; at < PyList_GET_SIZE(nodes); at++) {
        if (Py_IS_TYPE(PyList_GET_ITEM(nodes, at), &NodeType)) {
            node_forget((Node *)PyList_GET_ITEM(nodes, at));
        }
    }
    Py_DECREF(nodes);
    Py_RETURN_NONE;
}

/* Life */

static PyObject *new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"speller", "pieces", "beam", "share", NULL};
    PyObject *speller, *pieces;
    Py_ssize_t beam;
    double share;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OO$nd", names, &speller, &pieces, &beam, &share)) {
        return NULL;
    }
    if (!PyDict_Check(speller)) {
        PyErr_SetString(PyExc_TypeError, "a Speller is wanted");
        return NULL;
    }
    Readings *self = (Readings *)type->tp_alloc(type, 0); /* all zero */
    if (self == NULL) {
        return NULL;
    }
    self->speller = Py_NewRef(speller);
    self->beam = beam < 0 ? 0 : beam;
    self->share = share;
    if ((self->pieces = PySequence_Tuple(pieces)) == NULL || (self->nodes = PyList_New(0)) == NULL
        || (self->position = node_new(NULL, -1, 1.0)) == NULL || (self->due = PyList_New(1)) == NULL) {
        goto failed;
    }
    PyList_SET_ITEM(self->due, 0, Py_NewRef((PyObject *)self->position));
    if (readings_open_speller(self) < 0) {
        goto failed;
    }
    return (PyObject *)self;
failed:
    Py_DECREF(self);
    return NULL;
}

static int traverse(Readings *self, visitproc visit, void *arg)
{
    Py_VISIT(self->speller);
    Py_VISIT(self->counts);
    Py_VISIT(self->lists);
    Py_VISIT(self->pieces);
    Py_VISIT(self->nodes);
    Py_VISIT(self->due);
    Py_VISIT(self->position);
    Py_VISIT(self->view);
    for (Py_ssize_t at = 0; at < self->askeds; at++) {
        Py_VISIT(self->asked[at].tokens);
    }
    return 0;
}

static void empty(PyObject **list)
{
    PyObject *none = PyList_New(0);
    if (none == NULL) {
        PyErr_Clear();
    } else {
        Py_SETREF(*list, none);
    }
}

/* Breaks every cycle that could be: whatever Python code hung on a list of nodes. The rest is relied on by whoever calls a method later. */
static int clear(Readings *self)
{
    empty(&self->nodes);
    empty(&self->due);
    Py_CLEAR(self->view);
    readings_drop_asked(self);
    return 0;
}

static void dealloc(Readings *self)
{
    PyObject_GC_UnTrack(self);
    Py_XDECREF(self->nodes);
    Py_XDECREF(self->due);
    Py_XDECREF(self->view);
    readings_drop_asked(self);
    Py_XDECREF(self->position);
    Py_XDECREF(self->pieces);
    readings_close_speller(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *get_object(Readings *self, void *offset)
{
    return Py_NewRef(*(PyObject **)((char *)self + (Py_ssize_t)(intptr_t)offset));
}

static int set_due(Readings *self, PyObject *list, void *closure)
{
    (void)closure;
    return set_list(&self->due, list);
}

static PyObject *get_lost(Readings *self, void *closure)
{
    (void)closure;
    return PyFloat_FromDouble(self->lost);
}

static PyObject *get_flag(Readings *self, void *offset)
{
    return PyBool_FromLong(*((char *)self + (Py_ssize_t)(intptr_t)offset));
}

#define AT(member) ((void *)(intptr_t)offsetof(Readings, member))

static PyGetSetDef attributes[] = {
    {"speller", (getter)get_object, NULL, NULL, AT(speller)},
    {"_pieces", (getter)get_object, NULL, NULL, AT(pieces)},
    {"_nodes", (getter)get_object, NULL, NULL, AT(nodes)},
    {"due", (getter)get_object, (setter)set_due, NULL, AT(due)},
    {"position", (getter)get_object, NULL, NULL, AT(position)},
    {"lost", (getter)get_lost, NULL, NULL, NULL},
    {"repaired", (getter)get_flag, NULL, NULL, AT(repaired)},
    {"narrowed", (getter)get_flag, NULL, NULL, AT(narrowed)},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef methods[] = {
    {"feed", (PyCFunction)(void (*)(void))feed, METH_FASTCALL, NULL},
    {"view", (PyCFunction)view, METH_NOARGS, NULL},
    {"bound", (PyCFunction)bound, METH_O, NULL},
    {"bounds", (PyCFunction)bounds, METH_O, NULL},
    {"_missing", readings_missing, METH_VARARGS, NULL},
    {"supply", readings_supply, METH_O, NULL},
    {"weigh", readings_weigh, METH_O, NULL},
    {"advance", readings_advance, METH_O, NULL},
    {"_forget_all", (PyCFunction)forget_all, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

PyTypeObject ReadingsType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "strategies.fusion._core.Readings",
    .tp_doc = PyDoc_STR("See strategies.fusion.readings.Readings."),
    .tp_basicsize = sizeof(Readings),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .tp_new = new,
    .tp_dealloc = (destructor)dealloc,
    .tp_traverse = (traverseproc)traverse,
    .tp_clear = (inquiry)clear,
    .tp_methods = methods,
    .tp_getset = attributes,
};
