#include "masses.h"

#define SCANNED 32 /* so many entries are found sooner by looking at each than by hashing */

static inline size_t first_slot(int32_t piece, size_t mask)
{
    return ((uint32_t)piece * UINT32_C(2654435761) >> 7) & mask;
}

Mass *masses_find(const Masses *masses, int32_t piece)
{
    if (masses->slots == NULL) {
        for (Py_ssize_t at = 0; at < masses->size; at++) {
            if (masses->items[at].piece == piece) {
                return &masses->items[at];
            }
        }
        return NULL;
    }
    for (size_t slot = first_slot(piece, masses->mask);; slot = (slot + 1) & masses->mask) {
        int32_t place = masses->slots[slot];
        if (place == 0) {
            return NULL; /* there is always an empty slot: at most half of them are taken */
        }
        if (masses->items[place - 1].piece == piece) {
            return &masses->items[place - 1];
        }
    }
}

static void take_slot(Masses *masses, Py_ssize_t at)
{
    size_t slot = first_slot(masses->items[at].piece, masses->mask);
    while (masses->slots[slot] != 0) {
        slot = (slot + 1) & masses->mask;
    }
    masses->slots[slot] = (int32_t)(at + 1);
}

/* room: a power of two. */
static int set_room(Masses *masses, Py_ssize_t room)
{
    if (room > INT32_MAX / 4) {
        return -1;
    }
    Mass *items = PyMem_Realloc(masses->items, (size_t)room * sizeof(Mass));
    if (items == NULL) {
        return -1;
    }
    masses->items = items;
    if (room > SCANNED) {
        int32_t *slots = PyMem_Calloc(2 * (size_t)room, sizeof(int32_t));
        if (slots == NULL) {
            return -1; /* `room` is as it was, so this is tried again before anything is added */
        }
        PyMem_Free(masses->slots);
        masses->slots = slots;
        masses->mask = 2 * (size_t)room - 1;
        for (Py_ssize_t at = 0; at < masses->size; at++) {
            take_slot(masses, at);
        }
    }
    masses->room = room;
    return 0;
}

void masses_reserve(Masses *masses, Py_ssize_t entries)
{
    Py_ssize_t room = SCANNED;
    while (room < entries && room <= INT32_MAX / 8) {
        room *= 2;
    }
    if (room > masses->room) {
        (void)set_room(masses, room); /* what adds will try again, and say so */
    }
}

Mass *masses_at(Masses *masses, int32_t piece)
{
    Mass *found = masses_find(masses, piece);
    if (found != NULL) {
        return found;
    }
    if (masses->size == masses->room && set_room(masses, masses->room ? 2 * masses->room : SCANNED) < 0) {
        PyErr_NoMemory();
        return NULL;
    }
    Py_ssize_t at = masses->size++;
    masses->items[at] = (Mass){.mass = 0.0, .piece = piece, .listed = 0};
    if (masses->slots != NULL) {
        take_slot(masses, at);
    }
    return &masses->items[at];
}

void masses_clear(Masses *masses)
{
    PyMem_Free(masses->items);
    PyMem_Free(masses->slots);
    *masses = (Masses){0};
}

PyObject *masses_dict(const Masses *masses)
{
    PyObject *dict = PyDict_New();
    for (Py_ssize_t at = 0; dict != NULL && at < masses->size; at++) {
        PyObject *piece = PyLong_FromLong(masses->items[at].piece);
        PyObject *mass = PyFloat_FromDouble(masses->items[at].mass);
        if (piece == NULL || mass == NULL || PyDict_SetItem(dict, piece, mass) < 0) {
            Py_CLEAR(dict);
        }
        Py_XDECREF(piece);
        Py_XDECREF(mass);
    }
    return dict;
}
