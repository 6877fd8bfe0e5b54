/* strategies.fusion._core: see core.h. */

#include "core.h"

#ifndef SOURCES
#define SOURCES "" /* compile.py gives it: the digest of *.c and *.h */
#endif
#define VERSION 2 /* of what Python meets here: strategies.fusion.native.VERSION */

PyObject *name_ids, *name_logprobs, *name_outside, *name_complete, *name_continuing, *name_count_continuing;

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "strategies.fusion._core",
    .m_doc = PyDoc_STR("The fuser's hot steps, compiled. strategies.fusion.native says when they are used."),
    .m_size = -1,
    .m_methods = pool_methods,
};

PyMODINIT_FUNC PyInit__core(void)
{
    const struct {
        PyObject **name;
        const char *text;
    } names[] = {
        {&name_ids, "ids"},
        {&name_logprobs, "logprobs"},
        {&name_outside, "outside"},
        {&name_complete, "complete"},
        {&name_continuing, "continuing"},
        {&name_count_continuing, "count_continuing"},
    };
    for (size_t at = 0; at < sizeof names / sizeof names[0]; at++) {
        if (*names[at].name == NULL && (*names[at].name = PyUnicode_InternFromString(names[at].text)) == NULL) {
            return NULL;
        }
    }
    if (PyType_Ready(&NodeType) < 0 || PyType_Ready(&ViewType) < 0 || PyType_Ready(&ReadingsType) < 0) {
        return NULL;
    }
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL || PyModule_AddIntConstant(module, "VERSION", VERSION) < 0
        || PyModule_AddStringConstant(module, "SOURCES", SOURCES) < 0
        || PyModule_AddObjectRef(module, "Node", (PyObject *)&NodeType) < 0
        || PyModule_AddObjectRef(module, "View", (PyObject *)&ViewType) < 0
        || PyModule_AddObjectRef(module, "Readings", (PyObject *)&ReadingsType) < 0) {
        Py_XDECREF(module);
        return NULL;
    }
    return module;
}
