# `cpack` in a build folder makes two packages of the install tree: a .deb, which
# depends on the distribution's libraries, and a tar that brings along what a
# machine with only the C library lacks (packages_of.cmake says how they differ).
set(CPACK_PACKAGE_NAME moebius)
set(CPACK_PACKAGE_VENDOR "The Moebius authors")
set(CPACK_PACKAGE_CONTACT "The Moebius authors <maintainers@moebius.invalid>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY
  "Server of Mixture-of-Experts models that switches layouts while it serves")
set(CPACK_PACKAGE_DESCRIPTION
  "Moebius serves language models with an OpenAI API from several worker
processes, on processors or GPUs, and moves them between expert and tensor
parallelism without dropping a request or changing a token.")
set(CPACK_RESOURCE_FILE_LICENSE ${CMAKE_SOURCE_DIR}/LICENSE)
set(CPACK_GENERATOR DEB TGZ)
set(CPACK_STRIP_FILES ON)
set(CPACK_PACKAGE_DIRECTORY ${CMAKE_BINARY_DIR}/packages)
set(CPACK_PACKAGE_FILE_NAME
  "moebius-${PROJECT_VERSION}-linux-${CMAKE_SYSTEM_PROCESSOR}")
set(CPACK_VERBATIM_VARIABLES ON)

set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION net)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)  # needs dpkg-dev
set(CPACK_DEBIAN_PACKAGE_RECOMMENDS "python3, python3-yaml")
set(CPACK_DEBIAN_PACKAGE_SUGGESTS "openssh-client")

set(CPACK_PROJECT_CONFIG_FILE ${CMAKE_SOURCE_DIR}/cmake/packages_of.cmake)
include(CPack)
