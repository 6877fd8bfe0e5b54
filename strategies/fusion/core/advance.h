/* What advance.c, found.c and spelling.c have of each other. */

#ifndef MODELNET_ADVANCE_H
#define MODELNET_ADVANCE_H

#include "core.h"

/* Readings that a piece completes. */
typedef struct {
    Node **nodes; /* [size], room for [room] */
    Py_ssize_t size, room;
} Done;

/* advance.c */
int complete(Done *done, Node *parent, int32_t token, double weight);
int say(Readings *self, Node *node, int32_t piece);

/* spelling.c */
int add_up(Readings *self, Node *node);

/* found.c */
int open_ids(const Found *found, Py_buffer *ids, Py_ssize_t *complete);
int go_on_found(Readings *self, Node *node, int32_t piece, const Found *found, Done *done);

#endif
