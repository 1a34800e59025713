// Carries the libraries' precompiled headers (CMakeLists.txt).
