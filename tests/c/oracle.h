/* What a boundary must give, for tests in C: inputs from tenon/reference, and its judgement. */
#ifndef TENON_TESTS_C_ORACLE_H
#define TENON_TESTS_C_ORACLE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct oracle_case {
  int rows, hidden, team, group, layout, fresh_residual; /* bf16 rows, e4m3fn codes */
  float eps, offset;
  uint64_t seed;
} oracle_case;

/* Inputs of one rank, as bits: addend and residual [rows * hidden], weight [hidden]. */
void oracle_inputs(const oracle_case* shape, int rank, uint16_t* addend, uint16_t* residual,
                   uint16_t* weight);
/* 0 when everything has the bits that it must have; else 1 and the first difference in `why`. */
int oracle_judge(const oracle_case* shape, const uint16_t* residual, const uint16_t* rows,
                 const uint8_t* codes, const uint8_t* scales, uint64_t scale_bytes, char why[512]);

#ifdef __cplusplus
}
#endif

#endif
