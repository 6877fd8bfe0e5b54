/* The fuser's hot steps, natively: what `strategies.fusion.readings` and `strategies.fusion.linear` do, with the same results.
 *
 * Those two say what everything means; names here are theirs, and where an order of summation is kept it is theirs too.
 *
 * Memory. Every object owns what it points to; nothing is borrowed beyond one call. A list of nodes is a Python list, and whatever is taken
 * from one is checked to be a `Node`, for code outside can put anything there. Calls that may run Python code (methods of the speller, opening
 * a buffer) come first or hold what they stand on: no pointer into lists, a `Masses` or what was asked for is kept across one. Errors are Python exceptions: functions return NULL or a negative number with one set.
 */

#ifndef MODELNET_CORE_H
#define MODELNET_CORE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "masses.h"

/* Tokens that go on with a piece, looked up. */
typedef struct {
    PyObject *tokens;   /* strategies.vocabulary.Continuing */
    PyObject *values;   /* bytes: doubles, probabilities of all that were looked up in one go … */
    Py_ssize_t start;   /* … the first of this piece's among them … */
    Py_ssize_t count;   /* … and how many are its */
    int32_t piece;
} Found;

typedef struct Node {
    PyObject_HEAD
    struct Node *parent; /* NULL: the prompt */
    PyObject *said;      /* bytes */
    PyObject *spoken;    /* tuple of int */
    Py_ssize_t depth;
    Py_ssize_t at;
    int32_t token;
    int32_t counted;     /* the piece that was last asked for: so many tokens at most go on with it from what was said; -1: none was */
    Py_ssize_t going_on;
    double weight;
    double seen, outside, pmin;
    double *probs;       /* [count]; ids and nexts are in the same block behind it */
    int32_t *ids;
    int32_t *nexts;
    Py_ssize_t count;
    Masses masses;
    Masses resolved;     /* keys only */
    Found *found;        /* [founds] */
    Py_ssize_t founds;
} Node;

/* Holds until the next call that changes its member. */
typedef struct {
    PyObject_HEAD
    Node *owner;     /* whose masses these are, if the member has one reading of weight 1 … */
    Masses own;      /* … else the sums over its readings */
    PyObject *dict;  /* for Python, once it was asked for */
    double seen, fresh, unseen, each;
} View;

typedef struct {
    PyObject *tokens;
    Py_ssize_t count; /* of all tokens that go on with the piece */
    int32_t piece;
} Asked;

typedef struct {
    PyObject_HEAD
    PyObject *speller;
    PyObject *pieces;
    PyObject *nodes;    /* list of Node */
    PyObject *due;      /* list of Node */
    Node *position;
    View *view;         /* NULL: to be made */
    Asked *asked;       /* [askeds] */
    Py_ssize_t askeds;
    Py_ssize_t beam;
    double share;
    double lost;
    char repaired, narrowed;
    Py_buffer first;    /* token → first piece, int32 [vocabulary size] */
    Py_buffer begins;   /* piece → tokens that begin with it, int32 [pieces]; obj NULL where pieces are tokens */
    Py_buffer rows;     /* Speller.rows, int32 [ROW * vocabulary size]; obj NULL where pieces are tokens */
    PyObject *counts;   /* dicts: Speller.counts, Speller.lists */
    PyObject *lists;
} Readings;

#define ROW 4 /* strategies.vocabulary.inventory.ROW */

#ifdef __GNUC__
#define SOON(address) __builtin_prefetch(address) /* many reads of memory that is in no cache, at the same time */
#else
#define SOON(address) ((void)(address))
#endif

extern PyTypeObject NodeType, ViewType, ReadingsType;

/* node.c */
Node *node_new(Node *parent, int32_t token, double weight);
int node_start(Node *node, double weight);
void node_forget(Node *node);
int node_lists(Node *node, Py_ssize_t count);
int node_add_up(Node *node);
Found *node_found(Node *node, int32_t piece);
void node_drop_found(Node *node);
int node_add_found(Node *node, int32_t piece, PyObject *tokens, PyObject *values, Py_ssize_t start, Py_ssize_t count);
Node *node_in(PyObject *list, Py_ssize_t at);

/* view.c */
View *view_of(PyObject *nodes);
static inline Masses *view_masses(View *view) { return view->owner != NULL ? &view->owner->masses : &view->own; }

/* readings.c, spelling.c, lookups.c, advance.c */
View *readings_view(Readings *self);
double readings_bound(Readings *self, int32_t piece, bool wide);
Py_ssize_t readings_beginning(Readings *self, Node *node, int32_t piece);
PyObject *readings_continuing(Readings *self, const Node *node, int32_t piece);
Py_ssize_t readings_spelled(Readings *self, int32_t token, Py_ssize_t at, int32_t *piece);
void readings_spelled_soon(const Readings *self, int32_t token);
void readings_bound_soon(const Readings *self, int32_t piece);
int readings_open_speller(Readings *self);
void readings_close_speller(Readings *self);
PyObject *readings_missing(PyObject *self, PyObject *args);
PyObject *readings_supply(PyObject *self, PyObject *logprobs);
PyObject *readings_weigh(PyObject *self, PyObject *logprobs);
void readings_drop_asked(Readings *self);
PyObject *readings_advance(PyObject *self, PyObject *piece);
int piece_of(Readings *self, PyObject *number, int32_t *piece);
bool list_holds(PyObject *list, PyObject *item);

/* numbers.c */
bool as_int32(PyObject *number, int32_t *value);
int open_doubles(PyObject *array, Py_buffer *view); /* float64 or float32; to be released */
int open_int32s(PyObject *array, Py_buffer *view);  /* int32 or int64 */
bool int32_at(const Py_buffer *view, Py_ssize_t at, int32_t *value); /* false: an exception is set */
void probabilities(const Py_buffer *logprobs, double *into);
double pairwise_sum(const double *values, Py_ssize_t count);

/* pool.c */
extern PyMethodDef pool_methods[];

/* module.c: names of attributes */
extern PyObject *name_ids, *name_logprobs, *name_outside, *name_complete, *name_continuing, *name_count_continuing;

#endif
