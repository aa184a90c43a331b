/* A libnvidia-ml.so.1 that plays a script, for tests of the NVML meter through the real pynvml.
 *
 * The file named by JOULEPROXY_NVML_SCRIPT is read again at every call:
 *     init CODE                   what nvmlInit returns
 *     now_ms MS                   scripted time; counters move once in 100 ms of it
 *     gpu UUID CODE BASE_MJ POWER_MW COUNTER_CODE POWER_CODE FIELDS_CODE
 * CODE is what every call for that GPU returns, COUNTER_CODE and POWER_CODE are the returns of the single
 * values, FIELDS_CODE that of the field call as a whole. Every call is noted in the script's path + ".log".
 * Handles die with the connection that gave them. Names and numbers are those of NVIDIA's nvml.h.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_FOUND = 6, UNSIGNED_INT = 1, UNSIGNED_LONG_LONG = 3 };
enum { TOTAL_ENERGY = 83, POWER_AVERAGE = 185, POWER_INSTANT = 186 };

typedef struct {
    char uuid[64];
    int code, counter_code, power_code, fields_code;
    unsigned long long base_mj, power_mw;
} Gpu;

typedef struct {
    int init, count;
    unsigned long long now_ms;
    Gpu gpus[16];
} Script;

typedef struct {
    uint32_t field, scope;
    int64_t timestamp, latency_us;
    uint32_t type, code;
    union { uint32_t number; unsigned long long big; unsigned char bytes[8]; } value;
} FieldValue;

static uintptr_t connection = 0;
static int users = 0;

static Script play(const char *call) {
    Script script = {0};
    char line[256], path[4096];
    const char *name = getenv("JOULEPROXY_NVML_SCRIPT");
    snprintf(path, sizeof path, "%s.log", name);
    FILE *log = fopen(path, "a");
    fprintf(log, "%s\n", call);
    fclose(log);
    FILE *file = fopen(name, "r");
    while (fgets(line, sizeof line, file)) {
        Gpu *gpu = &script.gpus[script.count];
        if (sscanf(line, "init %d", &script.init) == 1 || sscanf(line, "now_ms %llu", &script.now_ms) == 1) continue;
        if (sscanf(line, "gpu %63s %d %llu %llu %d %d %d", gpu->uuid, &gpu->code, &gpu->base_mj, &gpu->power_mw,
                   &gpu->counter_code, &gpu->power_code, &gpu->fields_code) == 7)
            script.count++;
    }
    fclose(file);
    return script;
}

static void *handle(int index) { return (void *)(connection << 8 | (uintptr_t)(index + 1)); }

static int owned(const Script *script, void *device, Gpu *gpu) {
    uintptr_t index = ((uintptr_t)device & 255) - 1;
    if (!users || (uintptr_t)device >> 8 != connection) return UNINITIALIZED;
    if (index >= (uintptr_t)script->count) return INVALID_ARGUMENT;
    *gpu = script->gpus[index];
    return gpu->code;
}

static unsigned long long counter_mj(const Script *script, const Gpu *gpu) {
    return gpu->base_mj + gpu->power_mw * (script->now_ms / 100 * 100) / 1000;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    Script script = play("init");
    if (script.init == OK && users++ == 0) connection++;
    return script.init;
}

int nvmlShutdown(void) {
    play("shutdown");
    if (!users) return UNINITIALIZED;
    users--;
    return OK;
}

const char *nvmlErrorString(int code) {
    (void)code;
    return "scripted";
}

int nvmlSystemGetDriverVersion(char *text, unsigned length) {
    snprintf(text, length, "999.1");
    return OK;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = (unsigned)play("count").count;
    return users ? OK : UNINITIALIZED;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    Script script = play("handle_by_index");
    *device = handle((int)index);
    return script.gpus[index].code;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    Script script = play("handle_by_uuid");
    if (!users) return UNINITIALIZED;
    for (int index = 0; index < script.count; index++)
        if (!strcmp(uuid, script.gpus[index].uuid)) {
            *device = handle(index);
            return script.gpus[index].code;
        }
    return NOT_FOUND;
}

int nvmlDeviceGetUUID(void *device, char *text, unsigned length) {
    Gpu gpu;
    Script script = play("uuid");
    int code = owned(&script, device, &gpu);
    if (code == OK) snprintf(text, length, "%s", gpu.uuid);
    return code;
}

int nvmlDeviceGetName(void *device, char *text, unsigned length) {
    Gpu gpu;
    Script script = play("name");
    int code = owned(&script, device, &gpu);
    if (code == OK) snprintf(text, length, "Scripted GPU");
    return code;
}

int nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned *limit_mw) {
    Gpu gpu;
    Script script = play("power_limit");
    *limit_mw = 700000;
    return owned(&script, device, &gpu);
}

int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *energy_mj) {
    Gpu gpu;
    Script script = play("total_energy");
    int code = owned(&script, device, &gpu);
    if (code != OK) return code;
    *energy_mj = counter_mj(&script, &gpu);
    return gpu.counter_code;
}

int nvmlDeviceGetPowerUsage(void *device, unsigned *power_mw) {
    Gpu gpu;
    Script script = play("power_usage");
    int code = owned(&script, device, &gpu);
    if (code != OK) return code;
    *power_mw = (unsigned)gpu.power_mw;
    return gpu.power_code;
}

int nvmlDeviceGetFieldValues(void *device, int count, FieldValue *values) {
    Gpu gpu;
    Script script = play("field_values");
    int code = owned(&script, device, &gpu);
    if (code != OK) return code;
    if (gpu.fields_code != OK) return gpu.fields_code;
    for (int i = 0; i < count; i++) {
        FieldValue *value = &values[i];
        int energy = value->field == TOTAL_ENERGY;
        /* What is not filled is garbage, as it may be in the real library. */
        memset(value->value.bytes, 0xa5, sizeof value->value.bytes);
        value->code = (uint32_t)(energy ? gpu.counter_code : gpu.power_code);
        value->type = 77;
        if (value->code != OK) continue;
        value->type = energy ? UNSIGNED_LONG_LONG : UNSIGNED_INT;
        if (energy) value->value.big = counter_mj(&script, &gpu);
        /* The average lags: it says 1 W more here, so that tests can tell the two apart. */
        else value->value.number = (uint32_t)gpu.power_mw + (value->field == POWER_AVERAGE ? 1000 : 0);
    }
    return OK;
}
