# What `cmake --install` puts where: the floors as static libraries with their headers, the command, the
# licence, and the files through which find_package(tenon) finds them (targets tenon::boundary,
# tenon::comm, ...; docs/embed.md).
include(CMakePackageConfigHelpers)

configure_file(tenon/core/version.h.in generated/tenon/core/version.h @ONLY)
install(DIRECTORY tenon DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
        FILES_MATCHING PATTERN "*.h" PATTERN "*.def")
install(DIRECTORY tenon/device DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/tenon  # for kernels of one's own
        FILES_MATCHING PATTERN "*.cuh")
install(DIRECTORY ${PROJECT_BINARY_DIR}/generated/tenon DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
        FILES_MATCHING PATTERN "*.h" PATTERN "*.def")
if(NOT TENON_PACKAGE)  # Debian has its text
  install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
endif()

set(package ${CMAKE_INSTALL_LIBDIR}/cmake/tenon)
install(EXPORT tenon-targets NAMESPACE tenon:: DESTINATION ${package})
configure_package_config_file(cmake/tenon-config.cmake.in ${PROJECT_BINARY_DIR}/tenon-config.cmake
                              INSTALL_DESTINATION ${package} PATH_VARS CMAKE_INSTALL_INCLUDEDIR)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/tenon-config-version.cmake
                                 COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/tenon-config.cmake ${PROJECT_BINARY_DIR}/tenon-config-version.cmake
              cmake/tenon-kernels.cmake DESTINATION ${package})
