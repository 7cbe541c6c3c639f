# Flags that keep the contract of native/contract.h: every operator rounds once, in the order
# written, and every machine of native/targets.h gets code for exactly that machine.
#
# They come after those of the user (CXXFLAGS, LDFLAGS, CMAKE_ARGS, a toolchain), and the last one
# counts: -ffast-math, -Ofast, -march=native and their like lose, all other flags stay. errno and
# trapping are not part of the contract, and without them square root and division vectorise.

if(MSVC)
  set(optimization /O2)
  # There is no flag that takes an instruction set back.
  foreach(flags CMAKE_CXX_FLAGS CMAKE_CXX_FLAGS_RELEASE)
    string(REGEX REPLACE "(^| )[/-]arch:[^ ]+" "" ${flags} "${${flags}}")
  endforeach()
  add_compile_options(/fp:precise)
  if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    add_compile_options(/clang:-ffp-contract=off)
  endif()
  return()
endif()

set(optimization -O3 -Wall -Wextra)
set(arithmetic
    -fno-fast-math
    -fno-unsafe-math-optimizations
    -fno-associative-math
    -fno-reciprocal-math
    -fno-finite-math-only
    -fsigned-zeros
    -fno-rounding-math
    -fno-math-errno
    -fno-trapping-math)
if(CMAKE_CXX_COMPILER_ID MATCHES "Clang|IntelLLVM")
  list(APPEND arithmetic -fno-approx-func -fdenormal-fp-math=ieee)
else()
  list(APPEND arithmetic -fno-single-precision-constant)
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "IntelLLVM")
  list(PREPEND arithmetic -fp-model=precise)  # its default is fast
endif()
list(APPEND arithmetic -ffp-contract=off)
add_compile_options(${arithmetic})

# What the flags of targets.h start from. On other processors there is one machine, and it is the
# one that the user names.
if(machines STREQUAL "x86_64")
  add_compile_options(-march=x86-64 -msse2 -mno-sse3 -mfpmath=sse -mrecip=none)
endif()

# With -ffast-math or -Ofast, compilers link code that makes the whole process flush subnormals
# when the module is loaded.
add_link_options(-O3 -fno-fast-math -fno-unsafe-math-optimizations)
if("${CMAKE_CXX_FLAGS} ${CMAKE_MODULE_LINKER_FLAGS}" MATCHES "-mdaz-ftz")
  add_link_options(-mno-daz-ftz)
endif()
