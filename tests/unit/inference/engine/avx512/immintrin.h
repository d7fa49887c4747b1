/* AVX-512 on any processor, for tests: the intrinsics of SIMDe (Debian: libsimde-dev), and those that `nf4.c` takes and
 * SIMDe 0.7.4 does not have (later ones define them as macros). */
#define SIMDE_ENABLE_NATIVE_ALIASES
#define SIMDE_NO_NATIVE
#include <simde/x86/avx512.h>
#include <simde/x86/fma.h>

static inline __m512i join(__m256i low, __m256i high) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

#ifndef _mm512_cvtepu8_epi16
static inline __m512i _mm512_cvtepu8_epi16(__m256i a) {
    return join(_mm256_cvtepu8_epi16(_mm256_castsi256_si128(a)), _mm256_cvtepu8_epi16(_mm256_extracti128_si256(a, 1)));
}
#endif

#ifndef _mm512_cvtepi32_ps
static inline __m512 _mm512_cvtepi32_ps(__m512i a) {
    const __m256 low = _mm256_cvtepi32_ps(_mm512_extracti64x4_epi64(a, 0));
    const __m256 high = _mm256_cvtepi32_ps(_mm512_extracti64x4_epi64(a, 1));
    return _mm512_castsi512_ps(join(_mm256_castps_si256(low), _mm256_castps_si256(high)));
}
#endif

#ifndef _mm512_reduce_add_ps
static inline float _mm512_reduce_add_ps(__m512 a) {
    float lanes[16], total = 0.0f;
    _mm512_storeu_ps(lanes, a);
    for (int i = 0; i < 16; i++)
        total += lanes[i];
    return total;
}
#endif
