/* What `Readings` asks of its Speller. What that has found before is read from where it keeps it, for a call of Python's costs more than the
 * answer; its methods are called where it has to find something. */

#include <string.h>

#include "advance.h"

/* At most so many tokens go on with `piece` at a node. -1: an exception is set. Runs Python code where something is pending. */
Py_ssize_t readings_beginning(Readings *self, Node *node, int32_t piece)
{
    if (node->at == 0) {
        return self->begins.obj == NULL ? 1 : ((const int32_t *)self->begins.buf)[piece];
    }
    if (node->counted == piece) {
        return node->going_on;
    }
    PyObject *number = PyLong_FromLong(piece);
    PyObject *said = Py_NewRef(node->said); /* looking the method up may run code that starts the node anew */
    PyObject *key = number == NULL ? NULL : PyTuple_Pack(2, said, number);
    PyObject *count = key == NULL ? NULL : Py_XNewRef(PyDict_GetItemWithError(self->counts, key));
    if (count == NULL && key != NULL && !PyErr_Occurred()) {
        PyObject *args[] = {self->speller, said, number, PyTuple_GET_ITEM(self->pieces, piece)};
        count = PyObject_VectorcallMethod(name_count_continuing, args, 4, NULL);
    }
    Py_ssize_t found = count == NULL ? -1 : PyLong_AsSsize_t(count);
    if (found < 0 && !PyErr_Occurred()) {
        PyErr_SetString(PyExc_ValueError, "a count is negative");
    }
    if (found >= 0 && node->said == said) {
        node->counted = piece;
        node->going_on = found;
    }
    Py_XDECREF(number);
    Py_XDECREF(key);
    Py_XDECREF(count);
    Py_DECREF(said);
    return found;
}

/* `readings_bound` is going to be asked. */
void readings_bound_soon(const Readings *self, int32_t piece)
{
    if (self->begins.obj != NULL) {
        SOON((const int32_t *)self->begins.buf + piece);
    }
}

/* All tokens that go on with `piece` at a node: a Continuing, a new reference. May run Python code. */
PyObject *readings_continuing(Readings *self, const Node *node, int32_t piece)
{
    PyObject *said = Py_NewRef(node->said), *spoken = Py_NewRef(node->spoken), *number = PyLong_FromLong(piece), *found = NULL;
    Py_ssize_t count = PyTuple_GET_SIZE(spoken);
    PyObject *key = number == NULL ? NULL : PyTuple_New(count + 1);
    if (key == NULL) {
        goto end;
    }
    for (Py_ssize_t at = 0; at < count; at++) {
        PyTuple_SET_ITEM(key, at, Py_NewRef(PyTuple_GET_ITEM(spoken, at)));
    }
    PyTuple_SET_ITEM(key, count, Py_NewRef(number));
    found = Py_XNewRef(PyDict_GetItemWithError(self->lists, key));
    if (found == NULL && !PyErr_Occurred()) {
        PyObject *args[] = {self->speller, said, spoken, number, PyTuple_GET_ITEM(self->pieces, piece)};
        found = PyObject_VectorcallMethod(name_continuing, args, 5, NULL);
    }
end:
    Py_DECREF(said);
    Py_DECREF(spoken);
    Py_XDECREF(number);
    Py_XDECREF(key);
    return found;
}

static const int32_t *row_of(const Readings *self, int32_t token)
{
    bool there = self->rows.obj != NULL && token >= 0 && token < self->rows.shape[0] / ROW;
    return there ? (const int32_t *)self->rows.buf + (Py_ssize_t)ROW * token : NULL;
}

/* `readings_spelled` is going to be asked. */
void readings_spelled_soon(const Readings *self, int32_t token)
{
    const int32_t *row = row_of(self, token);
    if (row != NULL) {
        SOON(row);
    }
}

/* How many pieces a token is spelled with; piece: that which comes after `at` others, -1 if there is none; may be NULL. A negative number:
 * an exception is set. May run Python code. */
Py_ssize_t readings_spelled(Readings *self, int32_t token, Py_ssize_t at, int32_t *piece)
{
    const int32_t *row = row_of(self, token);
    if (row != NULL && row[0] > 0 && (piece == NULL || (at > 0 && at < ROW))) {
        if (piece != NULL) {
            *piece = at < row[0] ? row[at] : -1;
        }
        return row[0];
    }
    PyObject *key = PyLong_FromLong(token);
    if (key == NULL) {
        return -1;
    }
    PyObject *found = Py_XNewRef(PyDict_GetItemWithError(self->speller, key));
    if (found == NULL && !PyErr_Occurred()) {
        found = PyObject_GetItem(self->speller, key); /* spells it */
    }
    Py_DECREF(key);
    Py_ssize_t length = -1;
    if (found != NULL && !PyTuple_CheckExact(found)) {
        PyErr_SetString(PyExc_TypeError, "a spelling is a tuple");
    } else if (found != NULL) {
        length = PyTuple_GET_SIZE(found);
        if (piece != NULL) {
            *piece = -1;
            if (at < length && !as_int32(PyTuple_GET_ITEM(found, at), piece)) {
                length = -1;
            }
        }
    }
    Py_XDECREF(found);
    return length;
}

/* Nexts and masses of the lists as they are now. */
int add_up(Readings *self, Node *node)
{
    Py_ssize_t pieces = PyTuple_GET_SIZE(self->pieces), count = node->count, at = node->at;
    double seen = 0.0;
    for (Py_ssize_t place = 0; place < count; place++) {
        readings_spelled_soon(self, node->ids[place]);
    }
    for (Py_ssize_t place = 0; place < count; place++) {
        int32_t next = -1;
        Py_ssize_t length = readings_spelled(self, node->ids[place], at, &next);
        if (length < 0) {
            return -1;
        }
        if (at >= length) {
            PyErr_SetString(PyExc_ValueError, "a pending token has nothing left to say");
            return -1;
        }
        if (next < 0 || next >= pieces) {
            PyErr_SetString(PyExc_IndexError, "a token is spelled with an unknown piece");
            return -1;
        }
        if (node->count != count) {
            PyErr_SetString(PyExc_RuntimeError, "a place was changed while it was looked at");
            return -1;
        }
        node->nexts[place] = next;
        seen += node->probs[place];
    }
    node->seen = seen;
    return node_add_up(node);
}

/* Keep the buffer of an int32 array. */
static int hold(PyObject *array, Py_buffer *buffer, const char *what)
{
    if (PyObject_GetBuffer(array, buffer, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS) < 0) {
        return -1;
    }
    if (buffer->ndim == 1 && buffer->itemsize == sizeof(int32_t) && buffer->format != NULL
        && (strcmp(buffer->format, "i") == 0 || strcmp(buffer->format, "l") == 0)) {
        return 0;
    }
    PyBuffer_Release(buffer);
    PyErr_Format(PyExc_TypeError, "%s: an int32 array of one dimension is wanted", what);
    return -1;
}

int readings_open_speller(Readings *self)
{
    struct {
        const char *name;
        Py_buffer *held;
        Py_ssize_t least; /* numbers in it */
    } arrays[] = {{"first", &self->first, 0}, {"counts", &self->begins, PyTuple_GET_SIZE(self->pieces)}, {"rows", &self->rows, 0}};
    for (int which = 0; which < 3; which++) {
        PyObject *of = which == 1 ? PyObject_GetAttrString(self->speller, "beginning") : Py_NewRef(self->speller);
        PyObject *array = of == NULL ? NULL : PyObject_GetAttrString(of, arrays[which].name);
        Py_XDECREF(of);
        int done = array == NULL ? -1 : array == Py_None && which > 0 ? 0 : hold(array, arrays[which].held, arrays[which].name);
        Py_XDECREF(array);
        if (done < 0) {
            return -1;
        }
        if (arrays[which].held->obj != NULL && arrays[which].held->shape[0] < arrays[which].least) {
            PyErr_SetString(PyExc_ValueError, "a count for every piece is wanted");
            return -1;
        }
    }
    self->counts = PyObject_GetAttrString(self->speller, "counts");
    self->lists = self->counts == NULL ? NULL : PyObject_GetAttrString(self->speller, "lists");
    if (self->lists != NULL && (!PyDict_Check(self->counts) || !PyDict_Check(self->lists))) {
        PyErr_SetString(PyExc_TypeError, "a Speller is wanted");
        return -1;
    }
    return self->lists == NULL ? -1 : 0;
}

void readings_close_speller(Readings *self)
{
    PyBuffer_Release(&self->first);
    PyBuffer_Release(&self->begins);
    PyBuffer_Release(&self->rows);
    Py_XDECREF(self->counts);
    Py_XDECREF(self->lists);
    Py_XDECREF(self->speller);
}
