/* What pool.c, rivals.c and sides.c have of each other. */

#ifndef MODELNET_POOL_H
#define MODELNET_POOL_H

#include "core.h"

#define ROUNDING 1e-12 /* strategies.fusion.pool.ROUNDING */

/* One member in play. */
typedef struct {
    Readings *member; /* NULL where only views are asked for */
    View *view;
    double weight;
    double total; /* the most that its masses and all unlisted can be */
    double mine;  /* its mass of the winner, where there is one */
} Side;

/* All of them. Holds references, for bounds run Python code. */
typedef struct {
    Side *side; /* [count] */
    Py_ssize_t count;
    bool same;
} Sides;

/* sides.c */
int open_sides(Sides *sides, PyObject *members, PyObject *views, PyObject *weights);
void close_sides(Sides *sides);

/* pool.c */
double unlisted(const Sides *sides, const View *view);
int pool(const Sides *sides, bool estimate, Masses *scores);

/* rivals.c */
PyObject *rivals_of(const Sides *sides, int32_t winner, double *gap);

#endif
