/* `Node` of strategies.fusion.base, with its lists in flat arrays. */

#include <string.h>

#include "core.h"

static void drop_lists(Node *node)
{
    PyMem_Free(node->probs);
    node->probs = NULL;
    node->ids = node->nexts = NULL;
    node->count = 0;
    masses_clear(&node->masses);
}

void node_drop_found(Node *node)
{
    Found *found = node->found;
    Py_ssize_t founds = node->founds;
    node->found = NULL; /* first: dropping an object can run code that looks here */
    node->founds = 0;
    for (Py_ssize_t at = 0; at < founds; at++) {
        Py_DECREF(found[at].tokens);
        Py_DECREF(found[at].values);
    }
    PyMem_Free(found);
}

Found *node_found(Node *node, int32_t piece)
{
    for (Py_ssize_t at = node->founds; at-- > 0;) {
        if (node->found[at].piece == piece) {
            return &node->found[at];
        }
    }
    return NULL;
}

int node_add_found(Node *node, int32_t piece, PyObject *tokens, PyObject *values, Py_ssize_t start, Py_ssize_t count)
{
    Found *found = PyMem_Realloc(node->found, (size_t)(node->founds + 1) * sizeof(Found));
    if (found == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    node->found = found;
    found[node->founds++] = (Found){Py_NewRef(tokens), Py_NewRef(values), start, count, piece};
    return 0;
}

/* Nothing was said since this place, and the member's mass here is `weight`. */
int node_start(Node *node, double weight)
{
    PyObject *said = PyBytes_FromStringAndSize(NULL, 0), *spoken = PyTuple_New(0);
    if (said == NULL || spoken == NULL) {
        Py_XDECREF(said);
        Py_XDECREF(spoken);
        return -1;
    }
    node->weight = weight;
    node->at = 0;
    node->counted = -1;
    Py_XSETREF(node->said, said);
    Py_XSETREF(node->spoken, spoken);
    masses_clear(&node->resolved);
    node_drop_found(node);
    return 0;
}

void node_forget(Node *node)
{
    drop_lists(node);
    node_drop_found(node);
}

/* New lists of this length, their values not set. */
int node_lists(Node *node, Py_ssize_t count)
{
    const size_t each = sizeof(double) + 2 * sizeof(int32_t);
    double *block = NULL;
    if (count > 0) {
        block = (size_t)count > SIZE_MAX / each ? NULL : PyMem_Malloc((size_t)count * each);
        if (block == NULL) {
            PyErr_NoMemory();
            return -1;
        }
    }
    drop_lists(node);
    node->probs = block;
    node->ids = (int32_t *)(block + count);
    node->nexts = node->ids + count;
    if (block == NULL) {
        node->ids = node->nexts = NULL;
    }
    node->count = count;
    return 0;
}

/* The masses of what is listed; control tokens (-1) have none. */
int node_add_up(Node *node)
{
    masses_clear(&node->masses);
    masses_reserve(&node->masses, node->count);
    for (Py_ssize_t at = 0; at < node->count; at++) {
        if (node->nexts[at] >= 0) {
            Mass *mass = masses_at(&node->masses, node->nexts[at]);
            if (mass == NULL) {
                return -1;
            }
            mass->mass += node->probs[at];
            mass->listed++;
        }
    }
    return 0;
}

Node *node_in(PyObject *list, Py_ssize_t at)
{
    PyObject *item = PyList_GetItem(list, at); /* borrowed; IndexError if the list got shorter */
    if (item != NULL && !Py_IS_TYPE(item, &NodeType)) {
        PyErr_Format(PyExc_TypeError, "a native Node is wanted, not %.100s", Py_TYPE(item)->tp_name);
        return NULL;
    }
    return (Node *)item;
}

/* Python's side. Not a part of garbage collection, which would run through all places of an answer again and again: a node can be in no
 * cycle. It refers to its parent, which is older and never set again, to bytes, to a tuple of numbers, and to what a speller found, which is
 * frozen and knows no nodes. */

Node *node_new(Node *parent, int32_t token, double weight)
{
    Node *node = (Node *)NodeType.tp_alloc(&NodeType, 0); /* all zero */
    if (node == NULL) {
        return NULL;
    }
    node->parent = (Node *)Py_XNewRef((PyObject *)parent);
    node->token = token;
    node->depth = parent == NULL ? 0 : parent->depth + 1;
    if (node_start(node, weight) < 0) {
        Py_DECREF(node);
        return NULL;
    }
    return node;
}

static PyObject *new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"parent", "token", "weight", NULL};
    PyObject *parent, *number;
    double weight = 1.0;
    int32_t token;
    (void)type;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OO|d", names, &parent, &number, &weight) || !as_int32(number, &token)) {
        return NULL;
    }
    if (parent != Py_None && !Py_IS_TYPE(parent, &NodeType)) {
        PyErr_SetString(PyExc_TypeError, "the parent is a Node or None");
        return NULL;
    }
    return (PyObject *)node_new(parent == Py_None ? NULL : (Node *)parent, token, weight);
}

/* Let go of the way back. Thousands of places of a long answer may go with it: one after the other, not one inside of the other. */
static void drop_parents(Node *self)
{
    Node *node = self->parent;
    self->parent = NULL;
    while (node != NULL && Py_REFCNT(node) == 1) {
        Node *parent = node->parent;
        node->parent = NULL;
        Py_DECREF(node);
        node = parent;
    }
    Py_XDECREF(node);
}

static void dealloc(Node *self)
{
    node_forget(self);
    masses_clear(&self->resolved);
    drop_parents(self);
    Py_XDECREF(self->said);
    Py_XDECREF(self->spoken);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *get_parent(Node *self, void *closure)
{
    (void)closure;
    return Py_NewRef(self->parent == NULL ? Py_None : (PyObject *)self->parent);
}

static PyObject *get_int(Node *self, void *offset)
{
    return PyLong_FromSsize_t(*(Py_ssize_t *)((char *)self + (Py_ssize_t)(intptr_t)offset));
}

static PyObject *get_token(Node *self, void *closure)
{
    (void)closure;
    return PyLong_FromLong(self->token);
}

static PyObject *get_double(Node *self, void *offset)
{
    return PyFloat_FromDouble(*(double *)((char *)self + (Py_ssize_t)(intptr_t)offset));
}

static PyObject *get_object(Node *self, void *offset)
{
    return Py_NewRef(*(PyObject **)((char *)self + (Py_ssize_t)(intptr_t)offset));
}

/* A list for as many numbers as the node lists. Making it may collect garbage (3.11), and that run code that forgets them. */
static PyObject *room_for(const Node *self)
{
    Py_ssize_t count = self->count;
    PyObject *list = PyList_New(count);
    if (list != NULL && self->count != count) {
        Py_CLEAR(list);
        PyErr_SetString(PyExc_RuntimeError, "a place was changed while it was looked at");
    }
    return list;
}

static PyObject *get_ids(Node *self, void *closure)
{
    PyObject *list = room_for(self);
    const int32_t *numbers = closure == NULL ? self->ids : self->nexts;
    Py_ssize_t count = self->count;
    for (Py_ssize_t at = 0; list != NULL && at < count; at++) {
        PyObject *number = PyLong_FromLong(numbers[at]);
        if (number == NULL) {
            Py_CLEAR(list);
        } else {
            PyList_SET_ITEM(list, at, number);
        }
    }
    return list;
}

static PyObject *get_probs(Node *self, void *closure)
{
    (void)closure;
    PyObject *list = room_for(self);
    for (Py_ssize_t at = 0; list != NULL && at < self->count; at++) {
        PyObject *number = PyFloat_FromDouble(self->probs[at]);
        if (number == NULL) {
            Py_CLEAR(list);
        } else {
            PyList_SET_ITEM(list, at, number);
        }
    }
    return list;
}

static PyObject *get_masses(Node *self, void *closure)
{
    (void)closure;
    return masses_dict(&self->masses);
}

static PyObject *get_resolved(Node *self, void *closure)
{
    (void)closure;
    PyObject *dict = masses_dict(&self->resolved);
    PyObject *set = dict == NULL ? NULL : PyFrozenSet_New(dict);
    Py_XDECREF(dict);
    return set;
}

static PyObject *get_found(Node *self, void *closure)
{
    (void)closure;
    PyObject *dict = PyDict_New();
    for (Py_ssize_t at = 0; dict != NULL && at < self->founds; at++) {
        const Found *found = &self->found[at];
        PyObject *piece = PyLong_FromLong(found->piece), *list = PyList_New(found->count);
        if (at >= self->founds || list == NULL || PyList_GET_SIZE(list) != self->found[at].count) {
            Py_XDECREF(piece);
            Py_XDECREF(list);
            Py_CLEAR(dict);
            if (!PyErr_Occurred()) {
                PyErr_SetString(PyExc_RuntimeError, "a place was changed while it was looked at");
            }
            break;
        }
        found = &self->found[at];
        const double *values = (const double *)PyBytes_AS_STRING(found->values) + found->start;
        for (Py_ssize_t place = 0; list != NULL && place < found->count; place++) {
            PyObject *number = PyFloat_FromDouble(values[place]);
            if (number == NULL) {
                Py_CLEAR(list);
            } else {
                PyList_SET_ITEM(list, place, number);
            }
        }
        PyObject *pair = list == NULL ? NULL : PyTuple_Pack(2, found->tokens, list);
        if (piece == NULL || pair == NULL || PyDict_SetItem(dict, piece, pair) < 0) {
            Py_CLEAR(dict);
        }
        Py_XDECREF(piece);
        Py_XDECREF(list);
        Py_XDECREF(pair);
    }
    return dict;
}

static PyObject *start(Node *self, PyObject *args)
{
    double weight = 1.0;
    if (!PyArg_ParseTuple(args, "|d", &weight) || node_start(self, weight) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *forget(Node *self, PyObject *nothing)
{
    (void)nothing;
    node_forget(self);
    Py_RETURN_NONE;
}

#define AT(member) ((void *)(intptr_t)offsetof(Node, member))

static PyGetSetDef attributes[] = {
    {"parent", (getter)get_parent, NULL, NULL, NULL},
    {"token", (getter)get_token, NULL, NULL, NULL},
    {"depth", (getter)get_int, NULL, NULL, AT(depth)},
    {"at", (getter)get_int, NULL, NULL, AT(at)},
    {"weight", (getter)get_double, NULL, NULL, AT(weight)},
    {"seen", (getter)get_double, NULL, NULL, AT(seen)},
    {"outside", (getter)get_double, NULL, NULL, AT(outside)},
    {"pmin", (getter)get_double, NULL, NULL, AT(pmin)},
    {"said", (getter)get_object, NULL, NULL, AT(said)},
    {"spoken", (getter)get_object, NULL, NULL, AT(spoken)},
    {"ids", (getter)get_ids, NULL, NULL, NULL},
    {"nexts", (getter)get_ids, NULL, NULL, AT(nexts)},
    {"probs", (getter)get_probs, NULL, NULL, NULL},
    {"masses", (getter)get_masses, NULL, NULL, NULL},
    {"resolved", (getter)get_resolved, NULL, NULL, NULL},
    {"found", (getter)get_found, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef methods[] = {
    {"start", (PyCFunction)start, METH_VARARGS, NULL},
    {"forget", (PyCFunction)forget, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

PyTypeObject NodeType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "strategies.fusion._core.Node",
    .tp_doc = PyDoc_STR("See strategies.fusion.base.Node."),
    .tp_basicsize = sizeof(Node),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = new,
    .tp_dealloc = (destructor)dealloc,
    .tp_methods = methods,
    .tp_getset = attributes,
};
