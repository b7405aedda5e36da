/* error.c - the last error of this thread, and how messages print positions and shapes. */
#include "core.h"
#include <stdarg.h>

static _Thread_local char last_error[1024] = "no error";
static int32_t message_base = 0;

int pg_fail(int code, const char *format, ...) {
  va_list args;
  va_start(args, format);
  vsnprintf(last_error, sizeof last_error, format, args);
  va_end(args);
  return code;
}

const char *pg_last_error(void) { return last_error; }

void pg_message_base(int32_t base) { message_base = base; }

int64_t pg_shown(int64_t index) { return index + message_base; }

char *pg_shape_text(const pg_tensor *t, char buffer[128]) {
  int used = snprintf(buffer, 128, "(");
  for (int32_t i = 0; i < t->ndim && used < 128; i++) /* eight sizes of 2^53 do not all fit */
    used += snprintf(buffer + used, (size_t)(128 - used), i ? ", %lld" : "%lld", (long long)t->shape[i]);
  if (used < 128) snprintf(buffer + used, (size_t)(128 - used), ")");
  return buffer;
}

int32_t pg_abi(void) { return PG_ABI; }

const char *pg_version(void) { return PERIGEE_VERSION; }
