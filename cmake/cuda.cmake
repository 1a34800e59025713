# The CUDA Toolkit. MOEBIUS_CUDA says whether devices are compiled for: AUTO
# (where the toolkit is found), ON (it must be there) or OFF.
# 12.0 is the first with C++20.
if(MOEBIUS_CUDA STREQUAL "OFF")
  return()
endif()
find_package(CUDAToolkit 12.0 QUIET)
if(NOT CUDAToolkit_FOUND)
  if(NOT MOEBIUS_CUDA STREQUAL "AUTO")
    message(FATAL_ERROR "MOEBIUS_CUDA needs the CUDA Toolkit 12.0 or later, and none is found. "
      "Install it (NVIDIA's package cuda-toolkit), or say where it is with "
      "-DCUDAToolkit_ROOT=FOLDER. Without a GPU use the preset release.")
  endif()
  message(STATUS "CUDA Toolkit: none found, so processors alone")
  set(MOEBIUS_CUDA OFF)
  return()
endif()
set(MOEBIUS_CUDA ON)
if(NOT CMAKE_CUDA_COMPILER)
  # The one that belongs to the libraries, on PATH or not.
  set(CMAKE_CUDA_COMPILER ${CUDAToolkit_NVCC_EXECUTABLE})
endif()
# Hopper. Before the language, since a new toolkit may lack the default of an
# older CMake.
set(CMAKE_CUDA_ARCHITECTURES 90 CACHE STRING "GPU architectures to compile for")
enable_language(CUDA)
# CMake 3.25.1, which is Debian 12's, does not know that nvcc has C++20.
if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
# The driver's library is opened when the program first asks for it: programs
# start on machines without one.
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
if(MOEBIUS_CCACHE)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${MOEBIUS_CCACHE})
endif()
message(STATUS "CUDA Toolkit ${CUDAToolkit_VERSION}: ${CMAKE_CUDA_COMPILER}")
