/* nccl.h - the part of NCCL 2 that nccl.cu calls. The library is opened when a run has several processes, so that
 * neither its headers nor itself are needed to build, or to run on one GPU. */
#ifndef PG_NCCL_H
#define PG_NCCL_H
#include <cuda_runtime.h>

typedef struct ncclComm *ncclComm_t;
typedef struct ncclUniqueId {
  char internal[128];
} ncclUniqueId;
typedef int ncclResult_t; /* 0: success */
typedef enum { ncclUint8 = 1, ncclInt32 = 2, ncclFloat32 = 7, ncclFloat64 = 8 } ncclDataType_t;
typedef enum { ncclSum = 0, ncclAvg = 4 } ncclRedOp_t;

/* NCCL_FUNCTIONS(F): F(return type, name, parameters) of each. */
#define NCCL_FUNCTIONS(F)                                                                                              \
  F(const char *, ncclGetErrorString, (ncclResult_t))                                                                  \
  F(ncclResult_t, ncclGetUniqueId, (ncclUniqueId *))                                                                   \
  F(ncclResult_t, ncclCommInitRank, (ncclComm_t *, int size, ncclUniqueId id, int rank))                               \
  F(ncclResult_t, ncclAllReduce,                                                                                       \
    (const void *, void *, size_t n, ncclDataType_t, ncclRedOp_t, ncclComm_t, cudaStream_t))                           \
  F(ncclResult_t, ncclReduceScatter,                                                                                   \
    (const void *, void *, size_t n, ncclDataType_t, ncclRedOp_t, ncclComm_t, cudaStream_t))                           \
  F(ncclResult_t, ncclAllGather, (const void *, void *, size_t n, ncclDataType_t, ncclComm_t, cudaStream_t))           \
  F(ncclResult_t, ncclBroadcast, (const void *, void *, size_t n, ncclDataType_t, int root, ncclComm_t, cudaStream_t))

#endif
