/* device_cuda.c - finds and opens the CUDA plug-in, a library of its own beside this one, on the first use of "cuda".
 *
 * One build so serves machines with and without a GPU. PERIGEE_CUDA=sim takes the simulated device in its place, for
 * tests; a path takes that file. */
#include "core.h"
#include <dlfcn.h>

static int open_plugin(const char *path, const char *named) {
  void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!handle) {
    const char *why = dlerror();
    FILE *there = fopen(path, "rb");
    if (there) fclose(there);
    if (!there)
      return pg_fail(PG_ERR_DEVICE, "device \"cuda\" is not available: there is no plug-in %s; %s", path,
                     named ? "PERIGEE_CUDA names it" : "`make` builds it where it finds nvcc");
    return pg_fail(PG_ERR_DEVICE, "device \"cuda\" is not available: %s", why);
  }
  int (*open)(int32_t abi, int32_t ops) = (int (*)(int32_t, int32_t))dlsym(handle, "pg_cuda_open");
  if (!open) return pg_fail(PG_ERR_DEVICE, "device \"cuda\" is not available: %s is no plug-in of Perigee", path);
  return open(PG_ABI, pg_op_count());
}

int pg_device_load_cuda(void) {
  static char reason[512];
  static bool tried;
  if (tried) return pg_fail(PG_ERR_DEVICE, "%s", reason); /* asked for once: the answer stays */
  tried = true;
  const char *named = getenv("PERIGEE_CUDA");
  if (named && !*named) named = NULL;
  char path[4096];
  Dl_info self;
  if (named && strchr(named, '/')) {
    snprintf(path, sizeof path, "%s", named);
  } else {
    if (named && strcmp(named, "sim")) {
      snprintf(reason, sizeof reason, "PERIGEE_CUDA=%s: is sim, the simulated device, or the path of a plug-in", named);
      return pg_fail(PG_ERR_DEVICE, "%s", reason);
    }
    const char *file = dladdr((void *)pg_device_load_cuda, &self) && self.dli_fname ? self.dli_fname : "";
    char whole[4096], *folder = realpath(file, whole) ? strrchr(whole, '/') : NULL;
    snprintf(path, sizeof path, "%.*s/libperigee_cuda%s.so", folder ? (int)(folder - whole) : 1, folder ? whole : ".",
             named ? "_sim" : "");
  }
  int status = open_plugin(path, named);
  snprintf(reason, sizeof reason, "%s", pg_last_error());
  return status;
}
