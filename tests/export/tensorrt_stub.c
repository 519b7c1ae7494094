/* Stands beneath the real Python bindings of TensorRT where its libraries are absent.
 *
 * The bindings import nine functions. These hand out objects whose virtual functions all do the
 * same: they write their call down and return what they were told to. Nothing is computed, so this
 * shows what the bindings accept and pass on, never what TensorRT makes of it. x86-64 only: which
 * function was called is known by its place in the table, its arguments by their registers.
 */
#include <stdint.h>
#include <string.h>

enum { OBJECTS = 16, SLOTS = 120, ANSWERS = 4, CALLS = 4096, TEXT = 256 };

struct object { void **table; struct object *impl; }; /* interfaces point to their implementation */
struct shape { int32_t count; int64_t sizes[8]; };
struct call { int64_t object, slot, arguments[4]; char text[TEXT]; struct shape shape; };
struct method { int64_t answers[ANSWERS]; struct shape shape; int num_answers, used, text, dims; };

static struct object objects[OBJECTS];
static struct method methods[OBJECTS][SLOTS];
static struct call calls[CALLS];
static int64_t num_calls;
static void *logger;

static int64_t answer(int64_t slot, int64_t a, int64_t b, int64_t c, int64_t d, int64_t e)
{
    int64_t first = (int64_t)objects, past = (int64_t)(objects + OBJECTS);
    int returns_shape = a < first || a >= past; /* then the first argument is where to put it */
    int64_t self = returns_shape ? b : a, given[4] = {b, c, d, e};
    int64_t object = (self - first) / (int64_t)sizeof(struct object);
    struct method *method = &methods[object][slot];
    struct call *call = &calls[num_calls++ % CALLS];
    if (returns_shape) memcpy(given, (int64_t[]){c, d, e, 0}, sizeof given);
    *call = (struct call){object, slot, {given[0], given[1], given[2], given[3]}, "", {0}};
    /* What they point to is gone when the call returns. */
    if (method->text) strncpy(call->text, (char *)given[method->text - 1], TEXT - 1);
    if (method->dims) call->shape = *(struct shape *)given[method->dims - 1];
    if (returns_shape) {
        memcpy((void *)a, &method->shape, sizeof method->shape);
        return a;
    }
    return method->num_answers ? method->answers[method->used++ % method->num_answers] : 0;
}

#define FUNCTION(n) static int64_t slot##n(int64_t a, int64_t b, int64_t c, int64_t d, int64_t e) \
    { return answer(n, a, b, c, d, e); }
#define ENTRY(n) (void *)slot##n,
#define TEN(what, t) what(t##0) what(t##1) what(t##2) what(t##3) what(t##4) \
    what(t##5) what(t##6) what(t##7) what(t##8) what(t##9)
#define ALL(what) what(0) what(1) what(2) what(3) what(4) what(5) what(6) what(7) what(8) what(9) \
    TEN(what, 1) TEN(what, 2) TEN(what, 3) TEN(what, 4) TEN(what, 5) TEN(what, 6) \
    TEN(what, 7) TEN(what, 8) TEN(what, 9) TEN(what, 10) TEN(what, 11)
ALL(FUNCTION)

/* The bindings ask for the dynamic type of what they get: one that they do not know. */
static struct { void *table; const char *name; } type = {0, "stand_in"};
static struct { int64_t offset; void *type; void *slots[SLOTS]; } table = {0, &type, {ALL(ENTRY)}};

void *stub_object(int64_t id)
{
    objects[id] = (struct object){table.slots, &objects[id]};
    return &objects[id];
}

void stub_answers(int64_t id, int64_t slot, int count, const int64_t *values)
{
    methods[id][slot].num_answers = count;
    methods[id][slot].used = 0;
    memcpy(methods[id][slot].answers, values, count * sizeof *values);
}

void stub_shape(int64_t id, int64_t slot, int count, const int64_t *sizes)
{
    methods[id][slot].shape.count = count;
    memcpy(methods[id][slot].shape.sizes, sizes, count * sizeof *sizes);
}

void stub_keep(int64_t id, int64_t slot, int text, int dims)
{
    methods[id][slot].text = text;
    methods[id][slot].dims = dims;
}

int64_t stub_num_calls(void) { return num_calls; }
struct call *stub_call(int64_t index) { return &calls[index % CALLS]; }

/* As TensorRT does from inside; `log` stands behind the four functions of a versioned interface. */
void stub_say(int severity, const char *text)
{
    (*(void (***)(void *, int, const char *))logger)[4](logger, severity, text);
}

void *createInferBuilder_INTERNAL(void *log, int version) { logger = log; return objects[0].impl; }
void *createInferRuntime_INTERNAL(void *log, int version) { logger = log; return objects[1].impl; }
void *createNvOnnxParser_INTERNAL(void *n, void *log, int version) { return objects[2].impl; }
void *createInferRefitter_INTERNAL(void *engine, void *log, int version) { return 0; }
void *createNvOnnxParserRefitter_INTERNAL(void *r, void *log, int version) { return 0; }
void *getBuilderPluginRegistry(int capability) { return 0; }
void *getPluginRegistry(void) { return 0; }
int initLibNvInferPlugins(void *log, const char *name) { return 1; }
int getNvOnnxParserVersion(void) { return 0; }
