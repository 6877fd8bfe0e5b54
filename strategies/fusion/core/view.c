/* `View` of strategies.fusion.readings: what a member thinks of the next piece. */

#include "core.h"

/* The masses over these nodes, in the order and by the sums of `Readings._look`. */
View *view_of(PyObject *nodes)
{
    View *view = (View *)ViewType.tp_alloc(&ViewType, 0); /* all zero */
    if (view == NULL) {
        return NULL;
    }
    Py_ssize_t count = PyList_GET_SIZE(nodes);
    for (Py_ssize_t at = 0; at < count; at++) {
        Node *node = node_in(nodes, at);
        if (node == NULL) {
            goto failed;
        }
        double weight = node->weight;
        if (count == 1 && weight == 1.0) {
            view->owner = (Node *)Py_NewRef((PyObject *)node);
            view->seen = node->seen;
            view->unseen = node->outside;
            view->fresh = node->at ? 0.0 : node->outside;
            view->each = node->at ? 0.0 : node->pmin;
            break;
        }
        masses_reserve(&view->own, view->own.size + node->masses.size);
        for (Py_ssize_t place = 0; place < node->masses.size; place++) {
            Mass *mass = masses_at(&view->own, node->masses.items[place].piece);
            if (mass == NULL) {
                goto failed;
            }
            mass->mass += weight * node->masses.items[place].mass;
        }
        view->seen += weight * node->seen;
        view->unseen += weight * node->outside;
        if (node->at == 0) {
            view->fresh += weight * node->outside;
            view->each += weight * node->pmin;
        }
    }
    return view;
failed:
    Py_DECREF(view);
    return NULL;
}

/* Not a part of garbage collection: a node is in no cycle, and the dict has numbers. */
static void dealloc(View *self)
{
    Py_XDECREF(self->owner);
    Py_XDECREF(self->dict);
    masses_clear(&self->own);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *get_masses(View *self, void *closure)
{
    (void)closure;
    if (self->dict == NULL) {
        self->dict = masses_dict(view_masses(self));
    }
    return Py_XNewRef(self->dict);
}

static PyObject *get_double(View *self, void *offset)
{
    return PyFloat_FromDouble(*(double *)((char *)self + (Py_ssize_t)(intptr_t)offset));
}

#define AT(member) ((void *)(intptr_t)offsetof(View, member))

static PyGetSetDef attributes[] = {
    {"masses", (getter)get_masses, NULL, NULL, NULL},
    {"seen", (getter)get_double, NULL, NULL, AT(seen)},
    {"fresh", (getter)get_double, NULL, NULL, AT(fresh)},
    {"unseen", (getter)get_double, NULL, NULL, AT(unseen)},
    {"each", (getter)get_double, NULL, NULL, AT(each)},
    {NULL, NULL, NULL, NULL, NULL},
};

PyTypeObject ViewType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "strategies.fusion._core.View",
    .tp_doc = PyDoc_STR("See strategies.fusion.readings.View."),
    .tp_basicsize = sizeof(View),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_dealloc = (destructor)dealloc,
    .tp_getset = attributes,
};
