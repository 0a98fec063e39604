// The extension module chan_rt.runtime.gallery._core. Python checks what it is given before it calls: see compiled.py.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>

#include "identities.h"
#include "search.h"

namespace {

using chan::Kernels;

// Null, with LookupError set, where there are none of that name; the best ones where no name is given.
const Kernels* kernels_named(const char* name) {
    std::string usable;
    for (const Kernels* const* each = chan::usable_kernels(); *each; ++each) {
        if (!name || !std::strcmp(name, (*each)->name)) return *each;
        usable += (usable.empty() ? "" : ", ") + std::string((*each)->name);
    }
    PyErr_Format(PyExc_LookupError, "the instruction set must be one that this CPU has (%s), got %s", usable.c_str(),
                 name);
    return nullptr;
}

PyObject* features(PyObject*, PyObject*) {
    PyObject* names = PyList_New(0);
    for (const Kernels* const* each = chan::usable_kernels(); names && *each; ++each) {
        PyObject* name = PyUnicode_FromString((*each)->name);
        if (!name || PyList_Append(names, name) < 0) Py_CLEAR(names);
        Py_XDECREF(name);
    }
    return names;
}

// A buffer of some bytes, C-contiguous, held as long as this lives.
class Bytes {
  public:
    Bytes() = default;
    Bytes(Bytes&& other) noexcept : view_(other.view_) { other.view_.obj = nullptr; }
    Bytes(const Bytes&) = delete;
    Bytes& operator=(const Bytes&) = delete;
    ~Bytes() {
        if (view_.obj) PyBuffer_Release(&view_);
    }
    bool take(PyObject* object, const char* name, int64_t size, bool writable = false) {
        if (PyObject_GetBuffer(object, &view_, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE) < 0) return false;
        if (view_.len < size) {
            PyErr_Format(PyExc_ValueError, "%s must have %lld bytes, got %zd", name, static_cast<long long>(size),
                         view_.len);
            return false;
        }
        return true;
    }
    template <typename Value>
    Value* as() const {
        return static_cast<Value*>(view_.buf);
    }
    int64_t size() const { return view_.len; }
    // Whether the first `count` int64 are numbers from 0 to below `limit`.
    bool are_below(int64_t limit, int64_t count, const char* name) const {
        for (int64_t i = 0; i < count; ++i) {
            const int64_t each = as<const int64_t>()[i];
            if (each >= 0 && each < limit) continue;
            PyErr_Format(PyExc_ValueError, "%s must be numbers from 0 to below %lld, got %lld", name,
                         static_cast<long long>(limit), static_cast<long long>(each));
            return false;
        }
        return true;
    }

  private:
    Py_buffer view_{};
};

// -- Threads

struct ThreadsObject {
    PyObject_HEAD
    chan::Threads* threads;
};

PyObject* threads_new(PyTypeObject* type, PyObject* args, PyObject*) {
    int count;
    if (!PyArg_ParseTuple(args, "i", &count)) return nullptr;
    auto* self = reinterpret_cast<ThreadsObject*>(PyType_GenericAlloc(type, 0));
    if (!self) return nullptr;
    try {
        self->threads = new chan::Threads(count);
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
        Py_DECREF(self);
        return nullptr;
    }
    return reinterpret_cast<PyObject*>(self);
}

void end_threads(ThreadsObject* self) {
    chan::Threads* threads = self->threads;
    self->threads = nullptr;
    Py_BEGIN_ALLOW_THREADS  // one of them may be about to call into Python
    delete threads;
    Py_END_ALLOW_THREADS
}

void threads_dealloc(PyObject* object) {
    PyTypeObject* type = Py_TYPE(object);
    end_threads(reinterpret_cast<ThreadsObject*>(object));
    PyObject_Free(object);
    Py_DECREF(type);
}

PyObject* threads_forget(PyObject* object, PyObject*) {
    reinterpret_cast<ThreadsObject*>(object)->threads = nullptr;  // they exist in the parent process only
    Py_RETURN_NONE;
}

PyMethodDef THREADS_METHODS[] = {
    {"forget", threads_forget, METH_NOARGS, "Let go of threads that a fork left behind in the parent process."},
    {nullptr, nullptr, 0, nullptr}};
PyType_Slot THREADS_SLOTS[] = {{Py_tp_new, reinterpret_cast<void*>(threads_new)},
                               {Py_tp_dealloc, reinterpret_cast<void*>(threads_dealloc)},
                               {Py_tp_methods, THREADS_METHODS},
                               {0, nullptr}};
PyType_Spec THREADS_SPEC = {"chan_rt.runtime.gallery._core.Threads", sizeof(ThreadsObject), 0, Py_TPFLAGS_DEFAULT,
                            THREADS_SLOTS};

// -- Search

struct Held {
    std::vector<Bytes> bytes;
    std::unique_ptr<chan::Search> search;
    PyObject* touch = nullptr;
    PyObject* threads_type = nullptr;
};

struct SearchObject {
    PyObject_HEAD
    Held* held;
};

// Reads a dictionary's values; the first error is left to Python and every later call does nothing.
class Reader {
  public:
    Reader(PyObject* dictionary, std::vector<Bytes>& bytes) : dictionary_(dictionary), bytes_(bytes) {}

    bool failed() const { return failed_; }

    PyObject* get(const char* name) {
        if (failed_) return nullptr;
        PyObject* value = PyDict_GetItemString(dictionary_, name);
        if (!value) {
            PyErr_Format(PyExc_KeyError, "%s", name);
            failed_ = true;
        }
        return value == Py_None ? nullptr : value;
    }
    int64_t integer(const char* name) {
        PyObject* value = get(name);
        const int64_t result = value ? PyLong_AsLongLong(value) : 0;
        failed_ |= PyErr_Occurred() != nullptr;
        return result;
    }
    double real(const char* name) {
        PyObject* value = get(name);
        const double result = value ? PyFloat_AsDouble(value) : 0;
        failed_ |= PyErr_Occurred() != nullptr;
        return result;
    }
    // The buffer's begin; null for None.
    template <typename Value>
    Value* array(const char* name, int64_t count, bool writable = false) {
        PyObject* value = get(name);
        if (!value) return nullptr;
        Bytes bytes;
        if (!bytes.take(value, name, count * static_cast<int64_t>(sizeof(Value)), writable)) {
            failed_ = true;
            return nullptr;
        }
        bytes_.push_back(std::move(bytes));
        return bytes_.back().as<Value>();
    }
    std::vector<int64_t> integers(const char* name) {
        std::vector<int64_t> result;
        PyObject* value = get(name);
        for (Py_ssize_t i = 0; value && !failed_ && i < PySequence_Size(value); ++i) {
            PyObject* item = PySequence_GetItem(value, i);
            result.push_back(item ? PyLong_AsLongLong(item) : 0);
            Py_XDECREF(item);
            failed_ |= PyErr_Occurred() != nullptr;
        }
        return result;
    }

  private:
    PyObject* dictionary_;
    std::vector<Bytes>& bytes_;
    bool failed_ = false;
};

void read_level(Reader& reader, const char* prefix, chan::Level& level) {
    const std::string name(prefix);
    level.norms = reader.integer((name + "_norms").c_str());
    level.coordinates = reader.integer((name + "_coordinates").c_str());
    level.codes = level.coordinates + reader.integer((name + "_again").c_str());
    level.width = (level.norms + level.codes + chan::GROUP - 1) / chan::GROUP * chan::GROUP;
    level.edges = reader.integers((name + "_edges").c_str());
    level.steps = reader.array<const float>((name + "_steps").c_str(), level.codes);
    level.norm_step = reader.array<const float>((name + "_norm_step").c_str(), level.norms);
    level.norm_typical = reader.array<const float>((name + "_norm_typical").c_str(), level.norms);
}

bool read_part(PyObject* dictionary, const chan::Plan& plan, Held& held, chan::Part& part) {
    Reader reader(dictionary, held.bytes);
    part.rows = reader.integer("rows");
    part.starts = reader.array<const int64_t>("starts", part.rows + 1);
    if (reader.failed()) return false;
    const int64_t vectors = part.starts[part.rows];
    part.stride = reader.integer("stride");
    part.codes = reader.array<const uint8_t>("codes", vectors * part.stride);
    part.scale = reader.array<const float>("scale", part.rows);
    part.error = reader.array<const float>("error", part.rows);
    part.norm = reader.array<const float>("norm", part.rows);
    static constexpr int64_t BYTES[] = {4, 2, 1};
    const int64_t form = reader.integer("form");
    if (reader.failed()) return false;
    if (form < 0 || form > 2) {
        PyErr_SetString(PyExc_ValueError, "form must be 0, 1 or 2");
        return false;
    }
    part.form = static_cast<chan::Fine>(form);
    part.fine = reader.array<const uint8_t>("fine", vectors * plan.dim * BYTES[form]);
    part.checked = reader.array<uint8_t>("checked", part.rows, true);
    part.order = reader.array<const int64_t>("order", part.rows);
    int64_t stored = 0;
    for (int64_t place = 0; part.order && place < part.rows; place += chan::LANES) {
        int64_t most = 0;
        for (int64_t i = place; i < std::min<int64_t>(place + chan::LANES, part.rows); ++i)
            most = std::max(most, part.starts[part.order[i] + 1] - part.starts[part.order[i]]);
        stored += most;
    }
    part.first = reader.array<const uint8_t>("first", stored * chan::LANES * plan.first.width);
    part.second = reader.array<const uint8_t>("second", vectors * plan.second.width);
    part.loose = reader.array<const uint8_t>("loose", part.rows);
    const auto blocks = static_cast<int64_t>(plan.edges.size()) - 1;
    part.blocks = reader.array<const float>("measures", part.rows * (2 * blocks + 1));
    return !reader.failed();
}

bool read_plan(PyObject* dictionary, Held& held, chan::Plan& plan) {
    static const char* const POOLINGS[] = {"Max", "Mean", "Sum", "LSE", "Softmax"};
    Reader reader(dictionary, held.bytes);
    PyObject* name = reader.get("instructions");
    if (reader.failed()) return false;
    PyObject* text = name ? PyUnicode_AsUTF8String(name) : nullptr;
    if (name && !text) return false;
    plan.kernels = kernels_named(text ? PyBytes_AsString(text) : nullptr);
    Py_XDECREF(text);
    if (!plan.kernels) return false;
    plan.dim = reader.integer("dim");
    plan.pools_query = reader.integer("pools_query") != 0;
    plan.temperature = reader.real("temperature");
    plan.digits = static_cast<int>(reader.integer("digits"));
    plan.deviation = reader.real("deviation");
    plan.edges = reader.integers("edges");
    plan.axes = reader.integer("axes");
    plan.mean = reader.array<const float>("mean", plan.dim);
    plan.basis = reader.array<const float>("basis", plan.axes * plan.dim);
    read_level(reader, "first", plan.first);
    read_level(reader, "second", plan.second);
    if (PyObject* pooling = reader.get("pooling")) {
        int found = -1;
        for (int i = 0; i < 5; ++i)
            if (PyUnicode_CompareWithASCIIString(pooling, POOLINGS[i]) == 0) found = i;
        if (found < 0) {
            PyErr_Format(PyExc_ValueError, "there is no pooling %R", pooling);
            return false;
        }
        plan.pooling = static_cast<chan::Pooling>(found);
    }
    return !reader.failed();
}

PyObject* search_new(PyTypeObject* type, PyObject* args, PyObject*) {
    PyObject *description, *parts, *touch;
    if (!PyArg_ParseTuple(args, "OOO", &description, &parts, &touch)) return nullptr;
    auto held = std::make_unique<Held>();
    chan::Plan plan;
    if (!read_plan(description, *held, plan)) return nullptr;
    std::vector<chan::Part> rows;
    for (Py_ssize_t i = 0; i < PyList_Size(parts); ++i) {
        chan::Part part;
        if (!read_part(PyList_GetItem(parts, i), plan, *held, part)) return nullptr;
        rows.push_back(std::move(part));
    }
    auto* self = reinterpret_cast<SearchObject*>(PyType_GenericAlloc(type, 0));
    if (!self) return nullptr;
    held->search = std::make_unique<chan::Search>(std::move(plan), std::move(rows));
    held->touch = Py_NewRef(touch);
    self->held = held.release();
    return reinterpret_cast<PyObject*>(self);
}

void search_dealloc(PyObject* object) {
    PyTypeObject* type = Py_TYPE(object);
    Held* held = reinterpret_cast<SearchObject*>(object)->held;
    if (held) Py_XDECREF(held->touch);
    delete held;
    PyObject_Free(object);
    Py_DECREF(type);
}

PyObject* bytes_of(const void* data, size_t size) {
    return PyBytes_FromStringAndSize(static_cast<const char*>(data), static_cast<Py_ssize_t>(size));
}

// (rows, counts, maxima, winners) as bytes of int64, int64, float64 and int32, then rows read at each level.
PyObject* answer_of(const chan::Answer& answer) {
    std::vector<int64_t> rows, counts;
    for (const chan::Found& found : answer.rows) rows.push_back(found.row), counts.push_back(found.count);
    return Py_BuildValue("(NNNNLLLL)", bytes_of(rows.data(), rows.size() * 8), bytes_of(counts.data(), counts.size() * 8),
                         bytes_of(answer.maxima.data(), answer.maxima.size() * 8),
                         bytes_of(answer.winners.data(), answer.winners.size() * 4),
                         static_cast<long long>(answer.second), static_cast<long long>(answer.codes),
                         static_cast<long long>(answer.fine), static_cast<long long>(answer.contradiction));
}

PyObject* list_of(const std::vector<chan::Answer>& answers) {
    PyObject* list = PyList_New(static_cast<Py_ssize_t>(answers.size()));
    for (size_t i = 0; list && i < answers.size(); ++i) {
        PyObject* item = answer_of(answers[i]);
        if (!item || PyList_SetItem(list, static_cast<Py_ssize_t>(i), item) < 0) Py_CLEAR(list);
    }
    return list;
}

// What the methods of a search share: its queries, and the call to Python that checks bytes.
class Call {
  public:
    explicit Call(PyObject* object) : held_(*reinterpret_cast<SearchObject*>(object)->held) {}
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;
    ~Call() { Py_XDECREF(raised_); }

    const chan::Search& search() const { return *held_.search; }
    chan::Threads& threads() const { return *threads_; }
    const float* queries() const { return vectors_.as<const float>(); }
    const int64_t* starts() const { return edges_.as<const int64_t>(); }
    int64_t count() const { return edges_.size() / 8 - 1; }

    bool take(PyObject* queries, PyObject* starts, PyObject* threads) {
        threads_ = reinterpret_cast<ThreadsObject*>(threads)->threads;
        if (!threads_) {
            PyErr_SetString(PyExc_RuntimeError, "these threads were left behind by a fork");
            return false;
        }
        return edges_.take(starts, "starts", 8) &&
               vectors_.take(queries, "queries", this->starts()[count()] * search().plan().dim * 4);
    }

    // Runs `work` without Python's lock; false, with an error set, where it failed.
    template <typename Work>
    bool run(const Work& work) {
        const chan::Search::TouchFunction touch = [this](int64_t part, int64_t row, uint8_t what) {
            return this->touch(part, row, what);
        };
        std::string trouble;
        Py_BEGIN_ALLOW_THREADS
        try {
            work(touch);
        } catch (const std::exception& error) {
            trouble = error.what();
        }
        Py_END_ALLOW_THREADS
        if (raised_)
            PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(raised_)), raised_);
        else if (!trouble.empty())
            PyErr_SetString(PyExc_MemoryError, trouble.c_str());
        return !raised_ && trouble.empty();
    }

  private:
    bool touch(int64_t part, int64_t row, uint8_t what) {
        const PyGILState_STATE state = PyGILState_Ensure();
        PyObject* result = PyObject_CallFunction(held_.touch, "LLi", static_cast<long long>(part),
                                                 static_cast<long long>(row), static_cast<int>(what));
        const bool well = result != nullptr;
        Py_XDECREF(result);
        if (!well) {
            PyObject *kind, *value, *trace;
            PyErr_Fetch(&kind, &value, &trace);
            PyErr_NormalizeException(&kind, &value, &trace);
            if (!raised_) raised_ = Py_XNewRef(value);
            Py_XDECREF(kind);
            Py_XDECREF(value);
            Py_XDECREF(trace);
        }
        PyGILState_Release(state);
        return well;
    }

    const Held& held_;
    chan::Threads* threads_ = nullptr;
    Bytes vectors_, edges_;
    PyObject* raised_ = nullptr;  // by the first `touch` that failed; read and written under Python's lock
};

PyObject* search_best(PyObject* object, PyObject* args) {
    PyObject *queries, *starts, *allowed, *floors, *threads;
    long long k;
    if (!PyArg_ParseTuple(args, "OOLOOO", &queries, &starts, &k, &allowed, &floors, &threads)) return nullptr;
    Call call(object);
    Bytes mask, least;
    if (!call.take(queries, starts, threads) || !least.take(floors, "floors", call.count() * 8)) return nullptr;
    if (allowed != Py_None && !mask.take(allowed, "allowed", call.search().rows())) return nullptr;
    std::vector<chan::Answer> answers;
    if (!call.run([&](const chan::Search::TouchFunction& touch) {
            call.search().best(call.queries(), call.starts(), call.count(), k,
                               allowed == Py_None ? nullptr : mask.as<const uint8_t>(), least.as<const double>(), touch,
                               call.threads(), answers);
        }))
        return nullptr;
    return list_of(answers);
}

PyObject* search_best_listed(PyObject* object, PyObject* args) {
    PyObject *queries, *starts, *listed, *edges, *floors, *threads;
    long long k;
    if (!PyArg_ParseTuple(args, "OOLOOOO", &queries, &starts, &k, &listed, &edges, &floors, &threads)) return nullptr;
    Call call(object);
    Bytes rows, places, least;
    if (!call.take(queries, starts, threads) || !least.take(floors, "floors", call.count() * 8) ||
        !places.take(edges, "edges", (call.count() + 1) * 8) ||
        !rows.take(listed, "listed", places.as<const int64_t>()[call.count()] * 8) ||
        !rows.are_below(call.search().rows(), places.as<const int64_t>()[call.count()], "listed"))
        return nullptr;
    std::vector<chan::Answer> answers;
    if (!call.run([&](const chan::Search::TouchFunction& touch) {
            call.search().best_listed(call.queries(), call.starts(), call.count(), k, rows.as<const int64_t>(),
                                      places.as<const int64_t>(), least.as<const double>(), touch, call.threads(),
                                      answers);
        }))
        return nullptr;
    return list_of(answers);
}

PyObject* search_above(PyObject* object, PyObject* args) {
    PyObject *queries, *starts, *query_thresholds, *row_thresholds, *threads;
    if (!PyArg_ParseTuple(args, "OOOOO", &queries, &starts, &query_thresholds, &row_thresholds, &threads)) return nullptr;
    Call call(object);
    Bytes of_queries, of_rows;
    if (!call.take(queries, starts, threads) || !of_queries.take(query_thresholds, "thresholds", call.count() * 8) ||
        !of_rows.take(row_thresholds, "thresholds", call.search().rows() * 8))
        return nullptr;
    std::vector<std::vector<chan::Scored>> found;
    if (!call.run([&](const chan::Search::TouchFunction& touch) {
            call.search().above(call.queries(), call.starts(), call.count(), of_queries.as<const double>(),
                                of_rows.as<const double>(), touch, call.threads(), found);
        }))
        return nullptr;
    std::vector<int64_t> counts, rows;
    std::vector<double> scores;
    for (const auto& each : found) {
        counts.push_back(static_cast<int64_t>(each.size()));
        for (const chan::Scored& scored : each) rows.push_back(scored.row), scores.push_back(scored.score);
    }
    return Py_BuildValue("(NNN)", bytes_of(counts.data(), counts.size() * 8), bytes_of(rows.data(), rows.size() * 8),
                         bytes_of(scores.data(), scores.size() * 8));
}

PyObject* search_scores(PyObject* object, PyObject* args) {
    PyObject *queries, *starts, *rows, *threads;
    if (!PyArg_ParseTuple(args, "OOOO", &queries, &starts, &rows, &threads)) return nullptr;
    Call call(object);
    Bytes wanted;
    if (!call.take(queries, starts, threads) || !wanted.take(rows, "rows", call.count() * 8) ||
        !wanted.are_below(call.search().rows(), call.count(), "rows"))
        return nullptr;
    std::vector<double> scores(call.count());
    if (!call.run([&](const chan::Search::TouchFunction& touch) {
            call.search().scores(call.queries(), call.starts(), call.count(), wanted.as<const int64_t>(), touch,
                                 call.threads(), scores.data());
        }))
        return nullptr;
    return bytes_of(scores.data(), scores.size() * 8);
}

PyObject* search_all_scores(PyObject* object, PyObject* args) {
    PyObject *queries, *starts, *threads, *out;
    if (!PyArg_ParseTuple(args, "OOOO", &queries, &starts, &threads, &out)) return nullptr;
    Call call(object);
    Bytes scores;
    if (!call.take(queries, starts, threads) || !scores.take(out, "out", call.search().rows() * call.count() * 4, true))
        return nullptr;
    if (!call.run([&](const chan::Search::TouchFunction& touch) {
            call.search().all_scores(call.queries(), call.starts(), call.count(), touch, call.threads(),
                                     scores.as<float>());
        }))
        return nullptr;
    Py_RETURN_NONE;
}

PyMethodDef SEARCH_METHODS[] = {
    {"best", search_best, METH_VARARGS, "best(queries, starts, k, allowed, floors, threads): see compiled.py."},
    {"best_listed", search_best_listed, METH_VARARGS, "best_listed(queries, starts, k, listed, edges, floors, threads)."},
    {"above", search_above, METH_VARARGS, "above(queries, starts, query_thresholds, row_thresholds, threads)."},
    {"scores", search_scores, METH_VARARGS, "scores(queries, starts, rows, threads)."},
    {"all_scores", search_all_scores, METH_VARARGS, "all_scores(queries, starts, threads, out)."},
    {nullptr, nullptr, 0, nullptr}};
PyType_Slot SEARCH_SLOTS[] = {{Py_tp_new, reinterpret_cast<void*>(search_new)},
                              {Py_tp_dealloc, reinterpret_cast<void*>(search_dealloc)},
                              {Py_tp_methods, SEARCH_METHODS},
                              {0, nullptr}};
PyType_Spec SEARCH_SPEC = {"chan_rt.runtime.gallery._core.Search", sizeof(SearchObject), 0, Py_TPFLAGS_DEFAULT,
                           SEARCH_SLOTS};

// -- the module

// Reads (folder, names, seen); false, with an error set, where that is not what it is given.
bool read_watched(PyObject* tuple, chan::Watched& watched) {
    PyObject *folder, *names, *seen;
    if (!PyArg_ParseTuple(tuple, "SO!S", &folder, &PyTuple_Type, &names, &seen)) return false;
    watched.folder = PyBytes_AsString(folder);
    for (Py_ssize_t i = 0; i < PyTuple_Size(names); ++i) {
        const char* name = PyBytes_AsString(PyTuple_GetItem(names, i));
        if (!name) return false;
        watched.names.push_back(name);
    }
    if (PyBytes_Size(seen) != PyTuple_Size(names) * static_cast<Py_ssize_t>(sizeof(chan::Identity))) {
        PyErr_SetString(PyExc_ValueError, "seen must have 40 bytes for each name");
        return false;
    }
    watched.seen = reinterpret_cast<const chan::Identity*>(PyBytes_AsString(seen));
    return true;
}

PyObject* untouched(PyObject*, PyObject* args) {
    PyObject *folders, *other = Py_None;
    const char *newest = nullptr, *line = nullptr;
    Py_ssize_t length = 0;
    if (!PyArg_ParseTuple(args, "O!|yy#O", &PyTuple_Type, &folders, &newest, &line, &length, &other)) return nullptr;
    const char* absent = other == Py_None ? nullptr : PyBytes_AsString(other);
    if (PyErr_Occurred()) return nullptr;
    std::vector<chan::Watched> watched(static_cast<size_t>(PyTuple_Size(folders)));
    for (size_t i = 0; i < watched.size(); ++i)
        if (!read_watched(PyTuple_GetItem(folders, static_cast<Py_ssize_t>(i)), watched[i])) return nullptr;
    bool same;
    Py_BEGIN_ALLOW_THREADS
    same = (!absent || chan::is_absent(absent)) &&
           (!newest || chan::begins_with(newest, std::string(line, static_cast<size_t>(length)))) &&
           std::all_of(watched.begin(), watched.end(), chan::untouched);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(same);
}

// Converts a buffer of numbers into another of as many, which errors call `name`.
template <typename From, typename To>
PyObject* converted(PyObject* args, const char* name, void (*convert)(const From*, int64_t, To*)) {
    PyObject *given, *out;
    if (!PyArg_ParseTuple(args, "OO", &given, &out)) return nullptr;
    Bytes from, to;
    if (!from.take(given, "values", 0)) return nullptr;
    const int64_t count = from.size() / static_cast<int64_t>(sizeof(From));
    if (!to.take(out, name, count * static_cast<int64_t>(sizeof(To)), true)) return nullptr;
    Py_BEGIN_ALLOW_THREADS
    convert(from.as<const From>(), count, to.as<To>());
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyObject* widen(PyObject*, PyObject* args) { return converted(args, "out", chan::usable_kernels()[0]->widen); }
PyObject* narrow(PyObject*, PyObject* args) { return converted(args, "half", chan::usable_kernels()[0]->narrow); }

constexpr long INTERFACE = 7;  // what compiled.py expects; raise both where a dictionary or a function changes

PyMethodDef METHODS[] = {
    {"features", features, METH_NOARGS, "Names of the instruction sets that work on this CPU, the best first."},
    {"widen", widen, METH_VARARGS, "widen(half, out): see halves.py."},
    {"narrow", narrow, METH_VARARGS, "narrow(values, half): see halves.py."},
    {"untouched", untouched, METH_VARARGS, "untouched(watched[, newest, line, absent]): see watch.py."},
    {nullptr, nullptr, 0, nullptr}};
PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_core", nullptr, 0, METHODS, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__core() {
    PyObject* module = PyModule_Create(&MODULE);
    if (!module) return nullptr;
    PyObject* threads = PyType_FromSpec(&THREADS_SPEC);
    PyObject* search = PyType_FromSpec(&SEARCH_SPEC);
    if (!threads || !search || PyModule_AddObjectRef(module, "Threads", threads) < 0 ||
        PyModule_AddObjectRef(module, "Search", search) < 0 ||
        PyModule_AddIntConstant(module, "INTERFACE", INTERFACE) < 0)
        Py_CLEAR(module);
    Py_XDECREF(threads);
    Py_XDECREF(search);
    return module;
}
