# Read by cpack once for each kind of package.
list(GET CPACK_INSTALL_CMAKE_PROJECTS 0 moebius_build)
if(CPACK_GENERATOR STREQUAL "DEB")
  set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
  set(CPACK_INSTALL_CMAKE_PROJECTS "${moebius_build};moebius;Unspecified;/")
else()
  set(CPACK_INSTALL_CMAKE_PROJECTS
    "${moebius_build};moebius;Unspecified;/;${moebius_build};moebius;libraries;/")
endif()
