// The Python module chan_rt.runtime.gallery._core: converts arguments and releases the lock, and computes nothing itself.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "cpu.h"

namespace {

PyObject* features(PyObject*, PyObject*) {
  const std::vector<std::string> names = chan::usable_instruction_sets();
  PyObject* result = PyTuple_New(static_cast<Py_ssize_t>(names.size()));
  if (result == nullptr) return nullptr;
  for (std::size_t i = 0; i < names.size(); ++i) {
    PyObject* name = PyUnicode_FromString(names[i].c_str());
    if (name == nullptr) {
      Py_DECREF(result);
      return nullptr;
    }
    PyTuple_SetItem(result, static_cast<Py_ssize_t>(i), name);  // takes the reference
  }
  return result;
}

PyMethodDef methods[] = {
    {"features", features, METH_NOARGS, "Names of the instruction sets that can be used on this machine, best first."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_core", "The compiled search core.", 0, methods, nullptr, nullptr, nullptr, nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__core(void) { return PyModuleDef_Init(&definition); }
