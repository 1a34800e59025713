// Carries the tests' precompiled headers (CMakeLists.txt).
int main() {}
