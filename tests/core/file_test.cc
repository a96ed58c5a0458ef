// Files that are none: each is refused by what it is, and nothing waits.
#include "tenon/core/file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <vector>

namespace tenon {
namespace {

class Files : public testing::Test {
 protected:
  Files() {
    std::string name = (std::filesystem::temp_directory_path() / "tenon-XXXXXX").string();
    directory_ = mkdtemp(name.data());
  }
  ~Files() override {
    std::error_code ignored;
    std::filesystem::remove_all(directory_, ignored);
  }
  std::string at(const char* name) const { return (directory_ / name).string(); }

  std::filesystem::path directory_;
};

void expect_refused(const std::string& path, const std::string& sentence) {
  const auto text = read_text(path);
  ASSERT_FALSE(text) << path;
  EXPECT_EQ(text.status().message(), path + ": " + sentence);
}

TEST_F(Files, ReadsAWholeText) {
  const std::string bytes("one\0two\n", 8);
  std::ofstream(at("text"), std::ios::binary) << bytes;
  std::ofstream(at("empty"));
  const auto text = read_text(at("text"));
  ASSERT_TRUE(text) << text.status().message();
  EXPECT_EQ(*text, bytes);
  EXPECT_EQ(*read_text(at("empty")), "");
  const auto limited = read_text(at("text"), 7);
  ASSERT_FALSE(limited);
  EXPECT_EQ(limited.status().message(), at("text") + ": has 8 bytes, at most 7 are accepted");
}

TEST_F(Files, ReadsAnyBytesAndSaysWhereItEnded) {
  std::ofstream(at("text"), std::ios::binary) << "0123456789";
  const auto file = InputFile::open(at("text"));
  ASSERT_TRUE(file) << file.status().message();
  std::string found(4, ' ');
  auto* to = reinterpret_cast<std::byte*>(found.data());
  file->expect(3, 4);
  ASSERT_TRUE(file->read(3, 4, to));
  EXPECT_EQ(found, "3456");
  EXPECT_TRUE(file->read(10, 0, to));
  std::filesystem::resize_file(at("text"), 5);
  EXPECT_EQ(file->read(3, 4, to).message(),
            at("text") +
                ": became shorter while it was read: bytes 3 to 7 were asked for, 2 of "
                "these 4 were found");
}

TEST_F(Files, AreThemselvesUnderAnyName) {
  std::ofstream(at("one")) << "1";
  std::ofstream(at("two")) << "1";
  std::filesystem::create_hard_link(at("one"), at("link"));
  EXPECT_EQ(InputFile::open(at("one"))->id(), InputFile::open(at("link"))->id());
  EXPECT_FALSE(InputFile::open(at("one"))->id() == InputFile::open(at("two"))->id());
}

TEST_F(Files, RefusesWhatIsNoFile) {
  ASSERT_EQ(mkfifo(at("fifo").c_str(), 0600), 0);
  std::filesystem::create_directory(at("directory"));
  expect_refused(at("fifo"), "is a FIFO; accepted: a regular file");
  expect_refused(at("directory"), "is a directory; accepted: a regular file");
  expect_refused("/dev/zero", "is a device; accepted: a regular file");
  expect_refused(at("nothing"), "cannot be opened: No such file or directory");
  std::filesystem::create_symlink(at("loop"), at("loop"));
  EXPECT_FALSE(read_text(at("loop")));
}

TEST_F(Files, SaysWhatCannotBeRead) {
  if (geteuid() == 0) GTEST_SKIP() << "root reads everything";
  std::ofstream(at("secret")) << "x";
  chmod(at("secret").c_str(), 0);
  expect_refused(at("secret"), "cannot be opened: Permission denied");
}

TEST_F(Files, SaysThatTheLimitOfOpenFilesIsTooSmall) {
  std::ofstream(at("text")) << "x";
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  const int lowest = ::open("/dev/null", O_RDONLY);
  ::close(lowest);
  const rlimit none{static_cast<rlim_t>(lowest), before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  const auto text = read_text(at("text"));
  setrlimit(RLIMIT_NOFILE, &before);
  ASSERT_FALSE(text);
  EXPECT_EQ(text.status().message(),
            at("text") +
                ": cannot be opened: Too many open files; a larger limit of open files is "
                "needed (ulimit -n)");
  EXPECT_TRUE(read_text(at("text")));  // nothing was leaked
}

}  // namespace
}  // namespace tenon
