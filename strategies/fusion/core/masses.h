/* An ordered map: piece → its mass and how many listed tokens say it. Iterated in the order in which pieces came, as a Python dict is, so
 * that sums over it are made in the same order. */

#ifndef MODELNET_MASSES_H
#define MODELNET_MASSES_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

typedef struct {
    double mass;    /* probability, in the unit of its owner */
    int32_t piece;
    int32_t listed; /* tokens of the owner's list that say this piece next */
} Mass;

/* All zero is the empty map. */
typedef struct {
    Mass *items;     /* [size], room for [room] */
    int32_t *slots;  /* [mask + 1]: place in items + 1, or 0; NULL while the map is small enough to be scanned */
    Py_ssize_t size;
    Py_ssize_t room;
    size_t mask;
} Masses;

/* NULL if the piece is not there. The pointer holds until something is added. */
Mass *masses_find(const Masses *masses, int32_t piece);

/* The piece's entry, made with zeros if it was not there. NULL with an exception set: no memory. */
Mass *masses_at(Masses *masses, int32_t piece);

/* Room for so many entries, if it is to be had: spares growing step by step. */
void masses_reserve(Masses *masses, Py_ssize_t entries);

/* Drop all entries and what they took. */
void masses_clear(Masses *masses);

/* A new dict piece → mass. */
PyObject *masses_dict(const Masses *masses);

static inline double masses_get(const Masses *masses, int32_t piece)
{
    const Mass *found = masses_find(masses, piece);
    return found ? found->mass : 0.0;
}

#endif
